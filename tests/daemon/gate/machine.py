"""A made-up Linux machine: a /proc on which processes work, end and are waited for, and a clock."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .support import Clock

HERTZ = os.sysconf("SC_CLK_TCK")


class Machine:
    """``work`` lets a process (0: somebody who is not listed) use a core for some seconds."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock = root, Clock()
        self.busy, self.stolen, self.waiting = 50_000.0, 0.0, 0.0
        self.born = 100
        self.spent: dict[int, float] = {}
        self.reaped: dict[int, float] = {}
        self.known: dict[int, tuple[int, int, int]] = {}  # parent, threads, birth
        self._tell()

    def start(self, pid: int, parent: int = 1, threads: int = 1) -> int:
        self.born += 1
        self.known[pid] = (parent, threads, self.born)
        self.spent[pid] = self.reaped[pid] = 0.0
        self._write(pid)
        return pid

    def work(self, pid: int, seconds: float) -> None:
        self.busy += seconds
        if pid:
            self.spent[pid] += seconds
            self._write(pid)
        self._tell()

    def end(self, pid: int, by: int = 0) -> None:
        """It ends, and ``by`` waits for it; 0: somebody who is not listed."""
        if by:
            self.reaped[by] += self.spent[pid] + self.reaped[pid]
            self._write(by)
        shutil.rmtree(self.root / str(pid))
        del self.known[pid], self.spent[pid], self.reaped[pid]

    def _write(self, pid: int) -> None:
        parent, threads, born = self.known[pid]
        user, reaped = round(self.spent[pid] * HERTZ), round(self.reaped[pid] * HERTZ)
        fields = f"R {parent} 1 1 0 -1 4194304 100 0 0 0 {user} 0 {reaped} 0 20 0 {threads} 0 {born} 0 0"
        (self.root / str(pid)).mkdir(exist_ok=True)
        (self.root / str(pid) / "stat").write_text(f"{pid} (py) R 2) ({pid}) {fields}\n")

    def _tell(self) -> None:
        busy, stolen, waiting = (round(value * HERTZ) for value in (self.busy, self.stolen, self.waiting))
        (self.root / "stat").write_text(f"cpu  {busy} 0 0 99999 {waiting} 0 0 {stolen} 777 777\ncpu0 1 2 3\n")
