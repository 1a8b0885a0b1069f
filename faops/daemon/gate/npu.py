"""Whether an Ascend NPU is idle, as npu-smi tells: a program that takes a second or two, so nobody waits for it."""

from __future__ import annotations

import contextlib
import functools
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
UNASKED = "npu-smi has not answered yet"


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

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

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


class Tool:
    """npu-smi, asked now and then, for all NPUs together. ``untold`` says why there is no answer; "" if there is.

    ``mapping`` and ``table`` are the newest answers, and ``answers`` counts those of the table.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.untold = UNASKED
        self.mapping = self.table = ""
        self.answers = 0
        self._clock = clock
        self._question: Question | None = None
        self._asked_at = -ASK_SECONDS

    @property
    def pids(self) -> set[int]:
        """The process that answers just now: one of ours which is on no NPU."""
        return set() if self._question is None else {self._question.pid}

    def look(self) -> None:
        """Take the answer if it is there, and begin the next question if it is time to."""
        now = self._clock()
        self._listen(now)
        if self._question is not None or now - self._asked_at < ASK_SECONDS:
            return
        self._asked_at = now
        try:
            self._question = Question(USE if self.mapping else MAPPING, now)
        except OSError as error:
            self.untold = f"{TOOL} cannot be started ({error.strerror or error})"

    def close(self) -> None:
        """End the question under way."""
        if self._question is not None:
            self._question.close()
            self._question = None

    def _listen(self, now: float) -> None:
        question = self._question
        answer = None if question is None else question.answer(now)
        if question is None or answer is None:
            return
        self._question = None
        self.untold = "" if answer else "npu-smi failed"
        if answer and question.words == MAPPING:
            self.mapping, self.untold = answer, UNASKED
            self._asked_at = now - ASK_SECONDS  # the next question follows at once
        elif answer:
            self.table, self.answers = answer, self.answers + 1


@functools.cache
def shared() -> Tool:
    """The one of this process."""
    return Tool()


class Npu:
    """The use of one NPU by others: of its cores while nothing of ours is on it, else who came to it meanwhile."""

    def __init__(
        self,
        index: int,
        tool: Tool | None = None,
        clock: Callable[[], float] = time.monotonic,
        alike: Callable[[], bool] = numbered_alike,
    ) -> None:
        self.index, self._clock = index, clock
        self._tool = tool or shared()
        self._owners = Owners(alike, ASK_SECONDS + LIMIT_SECONDS)
        self._answers = 0
        self._place: Place = ()
        self._load: float | None = None
        self._holders: set[int] = set()

    def read(self, own: Collection[int], config: Config) -> Reading:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        self._tool.look()
        untold = self._tool.untold or self._understood()
        self._owners.note(set(own) - self._tool.pids, self._holders, self._clock())
        if untold:
            return Reading(f"nobody tells how busy the NPU is: {untold}; or {REGARDLESS}")
        return Reading(self._busy(config.busy_percent), self._figures())

    def close(self) -> None:
        """See :class:`~faops.daemon.gate.gate.Sensor`."""
        self._tool.close()

    def _understood(self) -> str:
        """Read the newest answer; why it tells nothing of this NPU, "" if it does."""
        if self._answers != self._tool.answers:
            self._answers = self._tool.answers
            table, self._place = self._tool.table, chip(self.index, self._tool.mapping)
            self._load = loads(table).get(self._place)
            self._holders = {process for place, process, _ in processes(table) if place == self._place}
        return "" if self._place else f"npu-smi does not know NPU {self.index}"

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
