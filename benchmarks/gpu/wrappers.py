"""Section "wrappers": every micro-test against numpy. The answers are among the figures, to be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.fixtures import answer_of
from benchmarks.gpu.micro import Micro, group_source
from benchmarks.gpu.micro_arithmetic import arithmetic_micros
from benchmarks.gpu.micro_matrix import matrix_micros
from benchmarks.gpu.micro_memory import memory_micros
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError, WrongError
from benchmarks.gpu.runners import Runner, answer, runners_for
from faops.architectures import cuda_number
from faops.backends.cuda_raw.targets import OLDEST

ANSWER = "answer"  # the figure that is a micro-test's answer

GROUPS: dict[str, Callable[[], list[Micro]]] = {
    "memory": memory_micros,
    "matrix": matrix_micros,
    "arithmetic": arithmetic_micros,
}


def items(options: Options) -> list[Item]:
    """One item a micro-test; on a device newer than Turing those that Turing has come again, as Turing's code."""
    return [
        Item(f"{micro.name}{suffix}", _trial(runner, group, micros, index, keep=not suffix))
        for suffix, runner in runners_for(options.card).items()
        for group, micros in ((group, make()) for group, make in GROUPS.items())
        for index, micro in enumerate(micros)
        if not suffix or micro.arch == OLDEST
    ]


def _trial(runner: Runner, group: str, micros: list[Micro], index: int, keep: bool) -> Callable[[], dict[str, Any]]:
    micro = micros[index]

    def run() -> dict[str, Any]:
        if micro.arch > cuda_number(runner.profile.arch):
            raise SkipError(f"{runner.profile.arch} does not have it")
        words = answer(runner, micro, group_source(micros), index)
        data = {ANSWER: answer_of(group, micro, words)} if keep else {}
        if reason := micro.wrong(words):
            raise WrongError(reason, data)  # a wrong answer is worth keeping too: it is what the device says
        return data

    return run
