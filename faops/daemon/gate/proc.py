"""How long the processors have worked, for whom, and how much of that was ours: read from Linux's /proc."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Fields of the line "cpu" of /proc/stat and of /proc/<pid>/stat after the name in brackets (source: proc(5)).
BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, interrupts; guests' time is in user time already
STOLEN_FIELD = 7
PARENT, USER, SYSTEM, REAPED_USER, REAPED_SYSTEM, THREADS, BORN = 1, 11, 12, 13, 14, 17, 19


@dataclass(frozen=True)
class Process:
    """One process: clock ticks that its threads have worked, and that its children had worked which it waited for.
    ``born`` tells it from another one that got its number later."""

    born: int
    parent: int
    threads: int
    worked: int
    reaped: int

    @property
    def total(self) -> int:
        """What its parent will be credited with."""
        return self.worked + self.reaped


Processes = dict[int, Process]


def machine(root: Path) -> tuple[int, int]:
    """Clock ticks since boot in which all cores together worked, and which other virtual machines took from this one.

    Waiting for disks is no work. In a container the figures are those of the whole host, which is what disturbs.
    Raises OSError and ValueError.
    """
    with open(root / "stat", "rb") as file:
        line = file.readline()
    name, *words = line.split() or [b""]
    if name != b"cpu" or len(words) <= STOLEN_FIELD:
        raise ValueError(f"{root / 'stat'} begins with {line.decode(errors='replace').rstrip()!r}")
    return sum(int(words[field]) for field in BUSY_FIELDS), int(words[STOLEN_FIELD])


def processes(pids: Iterable[int], root: Path) -> Processes:
    """Those of ``pids`` that are there."""
    found = {pid: _process(f"{root}/{pid}/stat") for pid in pids}
    return {pid: process for pid, process in found.items() if process is not None}


def _process(path: str) -> Process | None:
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        fields = content[content.rindex(b")") + 1 :].split()  # a name may hold brackets and spaces
        return Process(
            born=int(fields[BORN]),
            parent=int(fields[PARENT]),
            threads=max(1, int(fields[THREADS])),
            worked=int(fields[USER]) + int(fields[SYSTEM]),
            reaped=int(fields[REAPED_USER]) + int(fields[REAPED_SYSTEM]),
        )
    except (OSError, ValueError, IndexError):
        return None


def worked_between(before: Mapping[int, Process], after: Mapping[int, Process], most: float) -> tuple[int, int]:
    """Ticks that our processes worked between two looks at them, and threads whose last ticks nobody told.

    ``most`` is what all cores together can work meanwhile. The time of a process that ended is credited to whoever
    waited for it, as a rule another of ours; the time before the first look was counted then and is subtracted. Where
    none of ours waited for it, what it did since the first look is unknown.
    """
    worked, credits, untold = 0, {}, 0
    for pid, process in after.items():
        known = before.get(pid)
        if known is None or known.born != process.born:
            worked += int(min(process.total, most))
            continue
        worked += process.worked - known.worked
        credits[pid] = process.reaped - known.reaped
    worked += sum(credits.values())
    ended = [pid for pid, process in before.items() if pid not in credits]
    for pid in sorted(ended, key=lambda pid: len(_ancestors(pid, before))):
        heir = next((ancestor for ancestor in _ancestors(pid, before) if ancestor in credits), None)
        if heir is not None and credits[heir] >= before[pid].total:
            credits[heir] -= before[pid].total
            worked -= before[pid].total
        else:
            untold += before[pid].threads
    return max(0, worked), untold


def _ancestors(pid: int, known: Mapping[int, Process]) -> list[int]:
    """Its parent, the parent of that, and so on, as far as they are known."""
    found: list[int] = []
    while pid in known and known[pid].parent not in found:
        pid = known[pid].parent
        found.append(pid)
    return found
