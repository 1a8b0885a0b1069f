"""What GPUs answered to the micro-tests, as files that tests hold the emulator against.

One file an architecture and group of tests: who answered (device, driver, NVRTC, torch, date) and, by the test's name,
the digest of what was asked and the words of the answer in hexadecimal digits.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.gpu.micro import Micro, Words
from faops.backends.cuda_raw import nvrtc, targets
from faops.device import DeviceProfile
from faops.files import write_whole

SCHEMA = 1
FOLDER = record.ROOT / "tests" / "cuda_raw" / "fixtures"
NUMBERS_A_LINE = 16


def path_of(folder: Path, arch: str, group: str) -> Path:
    return folder / arch / f"{group}.json"


def recorded(folder: Path = FOLDER) -> list[Path]:
    """All files of answers, in order."""
    return sorted(folder.glob("*/*.json"))


def answer_of(group: str, micro: Micro, words: Words) -> dict[str, Any]:
    """One answer, as the figures of an outcome."""
    return {"group": group, "asked": micro.digest(), "words": to_text(words)}


def write(folder: Path, profile: DeviceProfile, answers: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Record ``answers`` (each an :func:`answer_of`, by the test's name), replacing those of the same architecture."""
    driver = targets.driver_cuda_version()
    paths = []
    for group in sorted({answer["group"] for answer in answers.values()}):
        path = path_of(folder, profile.arch, group)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "device": profile.name,
            "arch": profile.arch,
            "driver_cuda": None if driver is None else "{}.{}".format(*driver),
            "nvrtc": nvrtc.version_text(),
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "answers": {
                name: {"asked": answer["asked"], "words": answer["words"]}
                for name, answer in answers.items()
                if answer["group"] == group
            },
        }
        write_whole(path, record.compact(content) + "\n")
        paths.append(path)
    return paths


def read(path: Path) -> dict[str, Any]:
    """A recorded file; raises ValueError for one of another schema."""
    return record.read(path, SCHEMA)


def to_text(words: Words) -> list[str]:
    """The words in hexadecimal digits, NUMBERS_A_LINE of them a string."""
    digits = [f"{word:08x}" for word in words.tolist()]
    return [" ".join(digits[at : at + NUMBERS_A_LINE]) for at in range(0, len(digits), NUMBERS_A_LINE)]


def of_text(lines: list[str]) -> Words:
    """The inverse of :func:`to_text`."""
    return np.array([int(word, 16) for line in lines for word in line.split()], dtype=np.uint32)
