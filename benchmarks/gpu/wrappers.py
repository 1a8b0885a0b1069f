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
from benchmarks.gpu.outcome import Item, Skipped, Wrong
from benchmarks.gpu.runners import Runner, answer, runner_for
from faops.architectures import cuda_number

ANSWER = "answer"  # the figure that is a micro-test's answer

GROUPS: dict[str, Callable[[], list[Micro]]] = {
    "memory": memory_micros,
    "matrix": matrix_micros,
    "arithmetic": arithmetic_micros,
}


def items(options: Options) -> list[Item]:
    """One item a micro-test."""
    runner = runner_for(options.card)
    return [
        Item(micro.name, _trial(runner, group, micros, index))
        for group, micros in ((group, make()) for group, make in GROUPS.items())
        for index, micro in enumerate(micros)
    ]


def _trial(runner: Runner, group: str, micros: list[Micro], index: int) -> Callable[[], dict[str, Any]]:
    micro = micros[index]

    def run() -> dict[str, Any]:
        if micro.arch > cuda_number(runner.profile.arch):
            raise Skipped(f"{runner.profile.arch} does not have it")
        words = answer(runner, micro, group_source(micros), index)
        data = {ANSWER: answer_of(group, micro, words)}
        if reason := micro.wrong(words):
            raise Wrong(reason, data)  # a wrong answer is worth keeping too: it is what the device says
        return data

    return run
