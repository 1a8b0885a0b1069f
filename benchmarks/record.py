"""What goes into a result file beside the figures, and where the file lies.

A result is ``benchmarks/results/<device>/<name>.json``. Quick runs are for looking only and go to build/benchmarks.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from faops._version import __version__
from faops.device import DeviceProfile, detect
from faops.files import write_whole

SCHEMA = 1
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "benchmarks"

# Words of a processor's name that tell nothing about it.
NOISE = r"\((R|TM|C)\)|\b(Intel|AMD|CPU|Processor|NVIDIA|\d+-Core)\b|@.*$"


def device_folder(profile: DeviceProfile) -> str:
    """Short folder name of a device, such as ``cpu-xeon-avx512-2c`` or ``h200``."""
    name = re.sub(NOISE, " ", profile.name, flags=re.IGNORECASE)
    parts = [name]
    if profile.vendor == "cpu":
        parts = ["cpu", name, profile.arch.rpartition("-")[2], f"{profile.units}c"]
    return "-".join(filter(None, (re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)))


def header(name: str, device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """The first part of every result: what was run, when, on what, with which versions."""
    profile = detect(device)
    return {
        "schema": SCHEMA,
        "name": name,
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "device": {"folder": device_folder(profile), **profile.as_dict()},
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {
            "faops": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "settings": settings,
    }


def command() -> str:
    """The command line of this process, without the directories it lies in."""
    first = Path(sys.argv[0])
    module = f"-m benchmarks.{first.stem}" if first.parent.name == "benchmarks" else first.name
    module = module.removesuffix(".__main__")
    return " ".join(["python", module, *sys.argv[1:]])


def write(result: dict[str, Any], quick: bool = False) -> Path:
    """Write ``result`` as a whole to where results of its device lie; the path."""
    folder = (QUICK_RESULTS if quick else RESULTS) / str(result["device"]["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    write_whole(path, compact(result) + "\n")
    return path


def read(path: Path, schema: int = SCHEMA) -> dict[str, Any]:
    """A result, or another file that tells its schema; raises ValueError for a file of another one."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result.get("schema") != schema:
        raise ValueError(f"{path}: schema is {result.get('schema')!r}, expected {schema}")
    return result


def compact(result: Any) -> str:
    """Indented JSON with every list of plain values on one line, so that samples do not fill the file."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]", text)


def _git(*arguments: str) -> str:
    """What git says about the repository; "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
