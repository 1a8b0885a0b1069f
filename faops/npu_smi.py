"""What npu-smi, the tool of the Ascend driver, prints of NPUs and of the processes on them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

TOOL = "npu-smi"
USE = ("info",)  # its tables of NPUs and processes
MAPPING = ("info", "-m")  # which of them torch counts how
LIMIT_SECONDS = 10.0  # it takes one or two
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"  # the NPUs that a process may use, by number; torch counts them anew from 0
PROCESSES = re.compile(r"^\|\s*NPU\b.*\|\s*Process id\s*\|", re.MULTILINE)  # heads the last table
BUS = re.compile(r"[0-9A-Fa-f]+:[0-9A-Fa-f]+:[0-9A-Fa-f]+\.[0-9A-Fa-f]+|NA")

Place = tuple[str, ...]  # a card and the chip on it, as the tool numbers them


def chip(index: int, mapping: str) -> Place:
    """The place of torch's device ``index``, from what MAPPING prints; () if it does not say."""
    visible = [number for number in os.environ.get(VISIBLE, "").split(",") if number.strip()]
    if visible:
        wanted = visible[index].strip() if index < len(visible) else ""
    else:
        wanted = str(index)
    rows = (line.split() for line in mapping.splitlines())
    return next((tuple(row[:2]) for row in rows if len(row) > 3 and row[0].isdecimal() and row[2] == wanted), ())


def processes(table: str) -> Iterator[tuple[Place, int, str]]:
    """(place, process, words) of each row of the last table of USE: | 0  0 | 4711 | python | 512 |."""
    start = PROCESSES.search(table)
    for line in table[start.end() :].splitlines() if start else ():
        cells = _cells(line)
        if len(cells) >= 4 and cells[1].isdecimal():
            place = tuple(cells[0].split()) if " " in cells[0] else (cells[0], "0")
            own = cells[4] if len(cells) > 4 and cells[4].isdecimal() else cells[1]  # the number inside the container
            yield place, int(own), f"{cells[1]} {cells[2] or 'unnamed'} ({cells[3]} MB)"


def loads(table: str) -> dict[Place, float]:
    """Per cent of its AI cores that each chip uses, from the first table of USE.

    There are two rows a chip: | 0  910B3 | OK | 91.2 ... |, then | 0 | 0000:C1:00.0 | 37 ... |, whose third cell
    begins with the load.
    """
    found: dict[Place, float] = {}
    card = ""
    for line in table.splitlines():
        first, second, third = (*_cells(line), "", "", "")[:3]
        number = first.partition(" ")[0]
        if not number.isdecimal():
            continue
        if not BUS.fullmatch(second):
            card = number
        elif card and (load := third.partition(" ")[0]).isdecimal():
            found[card, number] = float(load)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
