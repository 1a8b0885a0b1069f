"""Section "wrappers": every micro-test against numpy, its answer recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import fixtures
from benchmarks.gpu.micro import Micro, Words, group_source
from benchmarks.gpu.micro_arithmetic import arithmetic_micros
from benchmarks.gpu.micro_matrix import matrix_micros
from benchmarks.gpu.micro_memory import memory_micros
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, Skipped
from benchmarks.gpu.runners import Runner, answer, runner_for
from faops.architectures import cuda_number

GROUPS: dict[str, Callable[[], list[Micro]]] = {
    "memory": memory_micros,
    "matrix": matrix_micros,
    "arithmetic": arithmetic_micros,
}


def items(options: Options) -> list[Item]:
    """One item a micro-test; the last of each group records what the others found."""
    runner = runner_for(options.card)
    found = []
    for group, make in GROUPS.items():
        micros = make()
        answers: dict[str, tuple[Micro, Words]] = {}
        found += [Item(f"{micro.name}", _trial(runner, micros, index, answers)) for index, micro in enumerate(micros)]
        if options.fixtures:
            found.append(Item(f"record {group}", _recording(Path(options.fixtures), group, runner, answers)))
    return found


def _trial(
    runner: Runner, micros: list[Micro], index: int, answers: dict[str, tuple[Micro, Words]]
) -> Callable[[], dict[str, Any]]:
    micro = micros[index]

    def run() -> dict[str, Any]:
        if micro.arch > cuda_number(runner.profile.arch):
            raise Skipped(f"{runner.profile.arch} does not have it")
        words = answer(runner, micro, group_source(micros), index)
        answers[micro.name] = (micro, words)  # a wrong answer too: it is what the device says
        reason = micro.wrong(words)
        assert not reason, reason
        return {"same_bits": not micro.wrong(words) and words.tobytes() == micro.expected.tobytes()}

    return run


def _recording(
    folder: Path, group: str, runner: Runner, answers: dict[str, tuple[Micro, Words]]
) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        assert answers, "no micro-test answered in this process"
        return {"path": str(fixtures.write(folder, group, runner.profile, answers)), "answers": len(answers)}

    return run
