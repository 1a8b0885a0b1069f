"""Whether an Ascend NPU is idle, as npu-smi tells: a program that takes a second or two, so nobody waits for it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from faops.daemon.gate.gate import Reading
from faops.daemon.gate.owners import Owners, numbered_alike
from faops.daemon.gate.unknown import REGARDLESS
from faops.npu_smi import LIMIT_SECONDS, MAPPING, TOOL, USE, Place, chip, loads, processes

if TYPE_CHECKING:
    from faops.daemon.config import Config

ASK_SECONDS = 5.0  # from one question to the next: each costs a good part of a second of a core
KILLED_SECONDS = 0.1
LONGEST_ANSWER = 1 << 20  # bytes


class Question:
    """One call of the tool. Raises OSError where it cannot be started."""

    def __init__(self, words: tuple[str, ...], asked_at: float) -> None:
        self.words, self.asked_at = words, asked_at
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the answer)
        try:
            self._process = subprocess.Popen(
                [TOOL, *words], stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._output.close()
            raise

    def answer(self, now: float) -> str | None:
        """What it printed; None while it runs, and "" where it failed or was ended because it took too long."""
        code = self._process.poll()
        if code is None:
            if now - self.asked_at < LIMIT_SECONDS:
                return None
            self.close()
            return ""
        self._output.seek(0)
        text = self._output.read(LONGEST_ANSWER).decode(errors="replace")
        self._output.close()
        return text if code == 0 else ""

    def close(self) -> None:
        """End it. One that is stuck in the driver is not waited for."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(KILLED_SECONDS)
        self._output.close()


class Npu:
    """The use of one NPU by others: of its cores while nothing of ours is on it, else who came to it meanwhile."""

    def __init__(
        self, index: int, clock: Callable[[], float] = time.monotonic, alike: Callable[[], bool] = numbered_alike
    ) -> None:
        self.index, self._clock = index, clock
        self._owners = Owners(alike, ASK_SECONDS + LIMIT_SECONDS)
        self._question: Question | None = None
        self._asked_at = -ASK_SECONDS
        self._place: Place = ()
        self._untold = "npu-smi has not answered yet"
        self._load: float | None = None
        self._holders: set[int] = set()

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        now = self._clock()
        self._listen(now)
        self._owners.note(own, self._holders, now)
        self._ask(now)
        if self._untold:
            return Reading(f"nobody tells how busy the NPU is: {self._untold}; or {REGARDLESS}")
        return Reading(self._busy(config.busy_percent), self._figures())

    def close(self) -> None:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        if self._question is not None:
            self._question.close()
            self._question = None

    def _ask(self, now: float) -> None:
        """Begin the next question, if it is time to."""
        if self._question is not None or now - self._asked_at < ASK_SECONDS:
            return
        self._asked_at = now
        try:
            self._question = Question(USE if self._place else MAPPING, now)
        except OSError as error:
            self._untold = f"{TOOL} cannot be started ({error.strerror or error})"

    def _listen(self, now: float) -> None:
        """Take the answer, if it is there."""
        question = self._question
        answer = None if question is None else question.answer(now)
        if question is None or answer is None:
            return
        self._question = None
        if question.words == MAPPING:
            self._place = chip(self.index, answer)
            self._untold = "npu-smi has not answered yet" if self._place else f"npu-smi does not know NPU {self.index}"
            self._asked_at -= ASK_SECONDS if self._place else 0.0  # the next question can follow at once
            return
        self._untold = "" if answer else "npu-smi failed"
        self._load = loads(answer).get(self._place)
        self._holders = {process for place, process, _ in processes(answer) if place == self._place}

    def _busy(self, allowed: float) -> str:
        """Who uses it, in words; "" for nobody."""
        owners = self._owners
        if owners.unclear:
            return f"one of pid {_listed(owners.unclear)} is not ours, and in a container nobody tells which"
        if self._load is None:
            others = {pid for pid in self._holders if not owners.is_ours(pid)}
            return f"pid {_listed(others)} on the NPU, of which npu-smi tells no use" if others else ""
        if owners.came:
            return f"pid {_listed(owners.came)} came to the NPU"
        only_others = bool(self._holders) and not owners.here
        if owners.working and not only_others:
            return ""
        return f"other programs use {self._load:.0f} % of the NPU" if self._load > allowed else ""

    def _figures(self) -> dict[str, float]:
        figures = {"others": float(sum(not self._owners.is_ours(pid) for pid in self._holders))}
        if self._load is not None:
            figures["utilisation"] = self._load
        return figures


def _listed(pids: Collection[int]) -> str:
    return ", ".join(str(pid) for pid in sorted(pids))
