"""Which processes hold memory of an Ascend NPU, as the tool of its driver, npu-smi, tells."""

from __future__ import annotations

import os
import subprocess

import torch

from faops.npu_smi import LIMIT_SECONDS, MAPPING, TOOL, USE, chip, processes


def others(device: torch.device) -> list[str]:
    """The processes other than this one on an NPU, such as "4711 python (512 MB)"; none where nobody tells."""
    place = chip(device.index or 0, _told(*MAPPING))
    found = processes(_told(*USE)) if place else ()
    return [words for where, process, words in found if where == place and process != os.getpid()]


def _told(*words: str) -> str:
    """What the tool prints; "" where it is missing, fails or hangs."""
    try:
        done = subprocess.run([TOOL, *words], capture_output=True, text=True, timeout=LIMIT_SECONDS, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
