"""The child that imports torch_npu and tries an NPU, and what it tells before it ends, whichever way it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faops.doctor import probes
from faops.doctor.check import Result, fail, skipped
from faops.doctor.npu.signs import without_torch_npu

COMMAND = (sys.executable, "-m", "faops.doctor.npu.child")
LIMIT_SECONDS = 180.0  # the first operators of a fresh CANN are compiled
MARK = "faops-probe "  # begins a line of the child that is meant for us; CANN prints lines of its own
STAGES = ("import", "operators", "devices", "bfloat16", "numerics")

Stage = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What each stage told, as far as the child came, and how it ended."""

    stages: dict[str, Stage]
    ended: probes.Ended

    @property
    def last(self) -> str:
        """The stage at which it ended: that which failed, or the first that told nothing; "" if all went well."""
        return next((name for name in STAGES if "error" in self.stages.get(name, {"error": ""})), "")


Ask = Callable[[], Answer]


def ask() -> Answer:
    """Run the child. It imports torch without torch_npu, so that a failure of the latter can be told."""
    ended = probes.run(COMMAND, LIMIT_SECONDS, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"})
    lines = (line.removeprefix(MARK) for line in ended.out.splitlines() if line.startswith(MARK))
    told = [json.loads(line) for line in lines]
    return Answer({stage.pop("stage"): stage for stage in told}, ended)


def told(ask: Ask, name: str, doing: str, mend: Callable[[str], str]) -> Stage | Result:
    """What stage ``name`` told; or the result of a check, if it told nothing.

    Where the child failed, crashed or hung in this very stage, ``doing`` says at what, and ``mend`` makes a command of
    the text of the failure. The checks of later stages are skipped.
    """
    if absent := without_torch_npu():
        return skipped(absent)
    answer = ask()
    last = answer.last
    if last and STAGES.index(last) < STAGES.index(name):
        return skipped(f"not tried: see npu.{last}")
    if last != name:
        return answer.stages[name]
    error = answer.stages.get(name, {}).get("error")
    if error:
        return fail(f"{doing} fails: {error}", fix=mend(error))
    text = f"{doing}: the process that tried it {_ending(answer.ended)}"
    return fail(text, *answer.ended.last_lines(), fix=mend(answer.ended.err))


def _ending(ended: probes.Ended) -> str:
    return ended.reason if ended.reason.startswith("crashed") else f"ended early: {ended.reason or 'it says nothing'}"
