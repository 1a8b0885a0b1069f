"""The misses that are waiting to be tuned, what is passed over, what is removed, and the way from end to end."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from faops.autotune import tuner
from faops.autotune.cache import TuningCache, environment, misses
from faops.autotune.cache.entry import file_name
from faops.device import DeviceProfile, known
from faops.problem import AttentionProblem, Band

from ..support import PROBLEM, FakeBench, FakeKernel, make_entry, missed, steady, untuned

H200 = known("h200")


def content_of(asked: AttentionProblem, **changes: Any) -> dict[str, Any]:
    values = {"schema": 1, "key": asked.key(), "problem": asked.as_dict(), "date": "2026-11-21"}
    return {**values, "faops_version": "0.1.0", **changes}


IMPOSSIBLE = [
    {"heads_kv": 0}, {"heads_q": 3}, {"batch": -4}, {"batch": 0}, {"op": "sideways"}, {"dtype": "int7"},
    {"layout": "odd"}, {"softcap": 2}, {"head_dim": 0}, {"seqlen_k": 1.5}, {"band": Band(-7, 0)},
    {"seqlen_q": -5, "seqlen_k": -5},
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "null", "\x00", '{"schema": 1}', "[" * 100_000, json.dumps(content_of(PROBLEM))[:-40],
        json.dumps(content_of(PROBLEM, schema=2)), json.dumps(content_of(PROBLEM, key="another")),
        json.dumps(content_of(PROBLEM, problem={"op": "forward", "unknown": 1})),
        json.dumps(content_of(PROBLEM, problem=[])),
        json.dumps(content_of(PROBLEM, problem={**PROBLEM.as_dict(), "batch": math.inf})),
        *(json.dumps(content_of(replace(PROBLEM, **change))) for change in IMPOSSIBLE),
    ],
    ids=lambda text: f"{len(text)}-{text[-60:]!a}",
)  # fmt: skip
def test_what_is_no_whole_miss_is_passed_over_and_left(cache: TuningCache, cpu: DeviceProfile, text: str) -> None:
    try:
        name = file_name(json.loads(text)["key"])  # so that the name is not what is wrong
    except (ValueError, TypeError, KeyError, RecursionError):
        name = file_name(PROBLEM.key())
    check_that_it_is_left(cache, cpu, name, text)


def test_a_miss_under_another_name_is_passed_over_and_left(cache: TuningCache, cpu: DeviceProfile) -> None:
    check_that_it_is_left(cache, cpu, "copy.json", json.dumps(content_of(PROBLEM)))


def check_that_it_is_left(cache: TuningCache, cpu: DeviceProfile, name: str, text: str) -> None:
    path = cache.directory(cpu) / "misses" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    cache.store(cpu, make_entry(cpu))
    assert misses.waiting(cache, cpu.identity) == []
    assert misses.settle(cache, cpu.identity) == 0
    untuned(PROBLEM, cpu)  # nor does a call replace it
    assert path.read_text() == text
    assert misses.clear(cache) == len({name, file_name(PROBLEM.key())})
    assert missed(cache) == []


def test_the_file_that_these_are_broken_from_is_read(cache: TuningCache, cpu: DeviceProfile) -> None:
    directory = cache.directory(cpu) / "misses"
    directory.mkdir(parents=True)
    (directory / file_name(PROBLEM.key())).write_text(json.dumps(content_of(PROBLEM)))
    assert [miss.problem for miss in misses.waiting(cache, cpu.identity)] == [PROBLEM]


def test_misses_of_another_environment_or_device_are_not_meant(
    cache: TuningCache, cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned(PROBLEM, cpu)
    untuned(PROBLEM, H200)
    assert misses.counts(cache) == {cpu.identity: 1, H200.identity: 1}
    assert [miss.problem for miss in misses.waiting(cache, H200.identity)] == [PROBLEM]
    monkeypatch.setattr(environment, "versions", lambda: {"schema": "1", "torch": "9"})
    assert misses.waiting(cache, cpu.identity) == []
    assert misses.counts(cache) == {}
    assert misses.settle(cache, cpu.identity) == 0
    assert len(missed(cache)) == 2
    assert misses.clear(cache) == 2
    assert missed(cache) == []


def test_a_miss_goes_once_it_has_a_valid_winner(cache: TuningCache, kernel: FakeKernel, cpu: DeviceProfile) -> None:
    other = replace(PROBLEM, head_dim=128)
    for problem in (PROBLEM, other):
        untuned(problem, cpu)
    assert misses.settle(cache, cpu.identity) == 2
    cache.store(cpu, make_entry(cpu, source_hash="of other code"))
    assert len(misses.waiting(cache, cpu.identity)) == misses.settle(cache, cpu.identity) == 2
    (result,) = tuner.tune([PROBLEM], make_bench=FakeBench(lambda item: steady(1.0)))
    assert result.status == "tuned"
    assert [miss.problem for miss in misses.waiting(cache, cpu.identity)] == [other]
    assert len(missed(cache)) == 2  # reading removes nothing
    assert misses.settle(cache, cpu.identity) == 1
    assert len(missed(cache)) == 1


# --- from end to end --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time, torch, faops
from faops import dispatch, execute

run = execute.run
execute.run = lambda plan, *rest: print(plan.source, flush=True) or run(plan, *rest)
q = torch.randn(1, 16, 2, 16)
for line in sys.stdin:
    time.sleep(dispatch.RECHECK_SECONDS)
    faops.attention(q, q, q, causal=True)
    print("done", flush=True)
"""


@pytest.mark.full
def test_a_running_program_leaves_a_miss_and_takes_up_its_winner(cache: TuningCache) -> None:
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    tune = [sys.executable, "-m", "faops_cli", "tune", "--from-misses", "--no-isolate", "--json"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings
    )
    assert program.stdin is not None and program.stdout is not None

    def ask() -> list[str]:
        """The source of each plan that one more call of the program runs anew."""
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write("\n")
        program.stdin.flush()
        lines = [program.stdout.readline().strip()]
        while lines[-1] not in ("done", ""):
            lines.append(program.stdout.readline().strip())
        return lines[:-1] if lines[-1] else ["it died"]

    try:
        assert ask() == ["default"]
        ask()  # the miss made a directory, which is looked at once more
        assert ask() == []  # from the memo
        tuned = subprocess.run(tune, capture_output=True, text=True, env=surroundings, timeout=120, check=False)
        assert tuned.returncode == 0, tuned.stderr
        document = json.loads(tuned.stdout)
        (problem,) = document["problems"]
        assert (problem["status"], problem["problem"]["seqlen_q"]) == ("tuned", 16)
        assert document["misses_waiting"] == 0
        assert missed(cache) == []
        assert ask() == ["tuned"]
        assert missed(cache) == []
    finally:
        program.stdin.close()
        program.wait(timeout=60)
    program.stdout.close()
