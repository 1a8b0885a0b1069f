"""Holding the emulator against what a GPU answered to the micro-tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.fixtures import of_text
from benchmarks.gpu.micro import group_source
from benchmarks.gpu.runners import Runner, answer
from benchmarks.gpu.wrappers import GROUPS

# Device and emulator may each be off by what a test allows.
SLACK = 2.0


def disagreements(group: str, content: Mapping[str, Any], runner: Runner) -> Iterator[tuple[str, str]]:
    """(test, what differs) for each recorded answer that ``runner`` does not give.

    ``content`` is a recorded file. A test that was asked otherwise when it was recorded, or is no more, is one too:
    its answer says nothing and has to be recorded again.
    """
    micros = GROUPS[group]()
    source = group_source(micros)
    by_name = {micro.name: index for index, micro in enumerate(micros)}
    for name, recorded in content["answers"].items():
        index = by_name.get(name)
        if index is None or micros[index].digest() != recorded["asked"]:
            yield name, "the test has changed since; record it again (python -m benchmarks.gpu_suite --only wrappers)"
            continue
        micro = micros[index]
        given = answer(runner, micro, source, index)
        if reason := micro.wrong(given, of_text(recorded["words"]), SLACK):
            yield name, f"the device said otherwise: {reason}"
