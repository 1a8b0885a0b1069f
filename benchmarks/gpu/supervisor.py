"""Runs a section in processes of its own, so that a kernel that faults or hangs costs one item and not the run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

from benchmarks import record
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Outcome
from benchmarks.gpu.worker import LOST

PATIENCE = 180.0  # seconds for one item, compiling included
START_PATIENCE = 300.0  # for a process to begin: torch is imported, a context is made
POLL = 0.05
STOP_SECONDS = 10.0
ERROR_LINES = 8

# A process among many: the others have the other cores.
ONE_CORE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

Show = Callable[[Outcome], None]


class Section:
    """One section's run: the outcomes so far, and where to go on."""

    def __init__(self, name: str, options: Options, deadline: float, show: Show, patience: float = PATIENCE) -> None:
        """``deadline`` is the time.time() after which no further item begins; ``show`` sees every outcome."""
        self.name = name
        self.outcomes: list[Outcome] = []
        self._options, self._deadline, self._show, self._patience = options, deadline, show, patience
        self._next = 0  # item that a new process begins with
        self._count: int | None = None

    def run(self) -> list[Outcome]:
        """Try every item. Never raises for what an item or its process does."""
        with tempfile.TemporaryDirectory(prefix="faops-suite-") as folder:
            started = -1
            while (self._count is None or self._next < self._count) and self._next != started:
                started = self._next
                self._one_process(Path(folder))
        if self._count is not None and self._next < self._count:
            self._add(Outcome(self.name, "the rest", "lost", f"{self._count - self._next} items: no process begins"))
        return self.outcomes

    def _one_process(self, folder: Path) -> None:
        lines, errors = folder / f"{self._next}.jsonl", folder / f"{self._next}.err"
        lines.touch()
        command = [sys.executable, "-m", "benchmarks.gpu.worker", self.name, self._options.text(), str(self._next),
                   str(self._deadline), str(lines)]  # fmt: skip
        with errors.open("wb") as said, lines.open(encoding="utf-8") as file:
            child = subprocess.Popen(
                command, cwd=record.ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self._environment()
            )
            try:
                hung, running = self._follow(child, file)
            finally:
                _stop(child)
        tail = "\n".join(errors.read_text(errors="replace").strip().splitlines()[-ERROR_LINES:])
        if hung:
            detail = f"no answer for {self._patience:g} seconds"
            self._add(Outcome(self.name, running or "starting", "hung", detail, self._patience))
        elif running:
            detail = f"its process ended with {child.returncode}\n{tail}"
            self._add(Outcome(self.name, running, "lost", detail))
        elif child.returncode not in (0, LOST):
            self._add(Outcome(self.name, "starting", "lost", f"the process ended with {child.returncode}\n{tail}"))

    def _environment(self) -> dict[str, str]:
        found = dict(os.environ)
        if self._options.card:
            found["TRITON_INTERPRET"] = "1"
        if self._options.parts > 1:
            found.update(ONE_CORE)
        return found

    def _follow(self, child: subprocess.Popen[bytes], file: IO[str]) -> tuple[bool, str]:
        """Read what the process finds until it ends: whether it hung, and the item it was at ("" for none)."""
        running, rest = "", ""
        heard, patience = time.monotonic(), START_PATIENCE
        while True:
            ended = child.poll() is not None  # asked before reading, so that nothing written before the end is missed
            rest += file.read()
            *whole, rest = rest.split("\n")
            for line in whole:
                running = self._line(line, running)
                heard, patience = time.monotonic(), self._patience
            if ended:
                return False, running
            if time.monotonic() - heard > patience:
                return True, running
            time.sleep(POLL)

    def _line(self, line: str, running: str) -> str:
        """Take in one line; the name of the item that now runs."""
        event = json.loads(line)
        if "items" in event:
            self._count = event["items"]
            return ""
        if "begin" in event:
            self._next = event["begin"] + 1  # whatever becomes of it, it is not tried again
            return str(event["name"])
        outcome = Outcome.of_line(line)
        if outcome.status == "not run":
            self._next += 1
        self._add(outcome)
        return ""

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._show(outcome)


def run_side_by_side(
    name: str, options: Options, deadline: float, show: Show, processes: int, patience: float = PATIENCE
) -> list[Outcome]:
    """Run a section in ``processes`` at a time, each with its part of the items."""
    parts = [
        Section(name, replace(options, part=part, parts=processes), deadline, show, patience)
        for part in range(processes)
    ]
    with ThreadPoolExecutor(processes) as threads:
        return [outcome for found in threads.map(Section.run, parts) for outcome in found]


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the process if it has not; one that is stuck in the driver is left behind."""
    if child.poll() is not None:
        return
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
