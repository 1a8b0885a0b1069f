"""Every check of doctor finds what it is for: the machine is in order, one thing is spoilt, and the check says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from faops import doctor
from faops.backends.triton import versions
from faops.doctor.check import Result, perform
from tests.doctor import breakages_of_daemon, breakages_of_npus, breakages_of_results
from tests.doctor.breakages import BREAKAGES, SLOW, Breakage
from tests.doctor.machine import Machine

assert breakages_of_daemon and breakages_of_npus and breakages_of_results

ALL = [(check, breakage) for check, ways in BREAKAGES.items() for breakage in ways]
# What a fix may begin with: a program, or what a person does in a shell or an editor.
COMMANDS = r"(pip|sudo|export|unset|faops|docker|source|edit|rm|chmod|find|wsl|nvidia-smi|npu-smi|python3\.\d+) "


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    versions._version.cache_clear()
    yield Machine(tmp_path, monkeypatch)
    versions._version.cache_clear()


def result_of(check_id: str) -> Result:
    (finding,) = perform([check for check in doctor.checks() if check.id == check_id])
    return finding.result


@pytest.mark.parametrize(("check", "breakage"), ALL, ids=[f"{check}-{how.__name__}" for check, how in ALL])
def test_what_is_broken_is_found(check: str, breakage: Breakage, machine: Machine) -> None:
    steps = breakage(machine)
    next(steps)
    if check not in SLOW and not check.startswith("kernels."):
        before = result_of(check)
        assert before.status == "ok", before
    words = next(steps)
    after = result_of(check)
    assert after.status in ("warn", "fail"), after
    assert words in after.summary
    assert re.match(COMMANDS, after.fix), after.fix


def test_every_check_is_broken_by_a_test() -> None:
    """A new check needs a function in breakages.py, or in a file beside it."""
    assert set(BREAKAGES) == {check.id for check in doctor.checks()}
