"""Which processes hold memory of an Ascend NPU, as the tool of its driver, npu-smi, tells."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator

import torch

TOOL = "npu-smi"
LIMIT_SECONDS = 10.0  # it takes one or two
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"  # the NPUs that a process may use, by number; torch counts them anew from 0


def others(device: torch.device) -> list[str]:
    """The processes other than this one on an NPU, such as "4711 python (512 MB)"; none where nobody tells."""
    chip = _chip(device.index or 0)
    found = _processes(_told("info")) if chip else ()
    return [words for place, process, words in found if place == chip and process != os.getpid()]


def _chip(index: int) -> tuple[str, ...]:
    """The card and the chip on it behind torch's device ``index``, as the tool numbers them; () if it does not say."""
    visible = [number for number in os.environ.get(VISIBLE, "").split(",") if number.strip()]
    if visible:
        wanted = visible[index].strip() if index < len(visible) else ""
    else:
        wanted = str(index)
    rows = (line.split() for line in _told("info", "-m").splitlines())
    return next((tuple(row[:2]) for row in rows if len(row) > 3 and row[0].isdecimal() and row[2] == wanted), ())


def _processes(table: str) -> Iterator[tuple[tuple[str, ...], int, str]]:
    """(card and chip, process, words) of each row of the tool's last table: | 0  0 | 4711 | python | 512 |."""
    heading = re.compile(r"^\|\s*NPU\b.*\|\s*Process id\s*\|", re.MULTILINE)
    start = heading.search(table)
    for line in table[start.end() :].splitlines() if start else ():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) >= 4 and cells[1].isdecimal():
            place = tuple(cells[0].split()) if " " in cells[0] else (cells[0], "0")
            own = cells[4] if len(cells) > 4 and cells[4].isdecimal() else cells[1]  # the number inside the container
            yield place, int(own), f"{cells[1]} {cells[2] or 'unnamed'} ({cells[3]} MB)"


def _told(*words: str) -> str:
    """What the tool prints; "" where it is missing, fails or hangs."""
    try:
        done = subprocess.run([TOOL, *words], capture_output=True, text=True, timeout=LIMIT_SECONDS, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
