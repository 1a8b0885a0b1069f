"""Measuring in a child process: the same numbers and errors as here, and what a lost child costs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faops import registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement import remote
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.measurement.remote import Measuring, RemoteBench, call_seconds, rebuilt
from faops.autotune.measurement.worker import FIRST_TO_GO, fingerprint
from faops.autotune.search.candidates import Candidate
from faops.device import detect, known
from faops.errors import (
    ArgumentError,
    CompileError,
    CrashedError,
    FaopsWarning,
    HangError,
    LaunchError,
    TuningError,
)
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

from .processes import alive, descriptors

PROBLEM = AttentionProblem(dtype="float32", seqlen_q=16, seqlen_k=16, heads_q=2, heads_kv=1, head_dim=16, head_dim_v=16)
BUDGET = Budget(warmup=0.0, time_cap=0.1, min_samples=3)
CPU = torch.device("cpu")
H200 = known("h200")


def candidate(kernel: Kernel, deed: str) -> Candidate:
    return Candidate(kernel, Config(do=deed))


# ------------------------------------------------------------------------------------------ a real child


@pytest.fixture
def measuring(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Measuring]:
    """Started in a folder whose files would stand in for packages, if the child looked there."""
    for name in ("torch", "json", "faops"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAOPS_TEST_WORD", "hello")
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    before = descriptors()
    with Measuring("cpu", detect("cpu")) as made:
        yield made
    assert descriptors() == before


def test_a_child_measures_as_this_process_does_and_may_be_lost(
    measuring: Measuring, troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one test, since a child takes seconds to start; two of them here."""
    here = DeviceBench(PROBLEM, CPU, detect("cpu"))
    bench = measuring.bench(PROBLEM)
    assert isinstance(bench, RemoteBench)
    first = measuring.helper.current
    score = Path(f"/proc/{first.process.pid}/oom_score_adj")
    assert not score.exists() or int(score.read_text()) == FIRST_TO_GO  # when memory runs out
    same_numbers(bench, here, troublesome)
    same_errors(bench, here, troublesome)
    what_the_child_warns_of_is_told(bench, troublesome)
    other_problems(measuring, bench, troublesome)
    assert measuring.helper.current is first

    with pytest.raises(CrashedError, match=r"SIGSEGV.*Segmentation fault \| File .*string_at"):
        bench.sample(candidate(troublesome, "segfault"), BUDGET)
    assert first.closed
    assert bench.sample(candidate(troublesome, ""), BUDGET)  # the next one is measured as if nothing had been
    assert measuring.helper.current is not first

    monkeypatch.setattr(effort, "REQUEST_LIMIT_SECONDS", 0.1)
    with pytest.raises(HangError, match="no answer within"):
        bench.check(candidate(troublesome, "hang"))
    assert not alive(measuring.helper.current.process.pid)


def same_numbers(bench: RemoteBench, here: DeviceBench, kernel: Kernel) -> None:
    """Sleeping takes the same time everywhere, whatever else the machine does."""
    there_took = min(bench.sample(candidate(kernel, "sleep"), BUDGET))
    here_took = min(here.sample(candidate(kernel, "sleep"), BUDGET))
    assert 0.02 <= there_took < 0.2
    assert 0.02 <= here_took < 0.2
    assert len(bench.sample(candidate(kernel, ""), BUDGET)) >= 3
    assert bench.conditions == Conditions()


def same_errors(bench: RemoteBench, here: DeviceBench, kernel: Kernel) -> None:
    for deed in ("tell", "fail"):  # tells the number of threads and the environment
        with pytest.raises(RuntimeError) as there_said:
            bench.sample(candidate(kernel, deed), BUDGET)
        with pytest.raises(RuntimeError) as here_said:
            here.sample(candidate(kernel, deed), BUDGET)
        assert str(there_said.value) == str(here_said.value)
    bench.check(candidate(kernel, ""))
    with pytest.raises(TuningError, match="out is wrong") as there_found:
        bench.check(candidate(kernel, "wrong"))
    with pytest.raises(TuningError) as here_found:
        here.check(candidate(kernel, "wrong"))
    assert str(there_found.value) == str(here_found.value)
    with pytest.raises(TuningError, match="ArgumentError: config: got this, expected another"):
        bench.sample(candidate(kernel, "fail strangely"), BUDGET)


def what_the_child_warns_of_is_told(bench: RemoteBench, kernel: Kernel) -> None:
    with pytest.warns(FaopsWarning, match="take care"):
        bench.sample(candidate(kernel, "warn"), BUDGET)


def other_problems(measuring: Measuring, bench: RemoteBench, kernel: Kernel) -> None:
    """One that cannot be opened is told at once; benches may be used in turns; a kernel of this process alone works."""
    with pytest.raises(TuningError, match="fp8 descales"):
        measuring.bench(replace(PROBLEM, fp8_descale=True))
    bench.check(candidate(kernel, ""))  # whose problem is not open any more
    other = measuring.bench(replace(PROBLEM, seqlen_q=8))
    for turn in (bench, other, bench):
        turn.check(candidate(kernel, ""))
    private = sys.modules[type(kernel).__module__].Private()
    registry.register(private)
    try:
        assert not measuring.knows(private)
        assert bench.sample(candidate(private, ""), BUDGET)
        with pytest.raises(TuningError, match="out is wrong"):
            bench.check(candidate(private, "wrong"))
    finally:
        registry.unregister(private.id)


# ------------------------------------------------------------------------------------------ a child that is made up


@dataclass
class MadeUpChild:
    """Knows every kernel; answers with what ``replies`` holds for a request, or raises it."""

    replies: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[dict[str, Any], float]] = field(default_factory=list)
    gone: bool = False

    def ask(self, request: dict[str, Any], limit: float) -> None:
        self.asked.append((request, limit))

    def wait(self) -> dict[str, Any]:
        reply = self.replies.get(self.asked[-1][0]["do"], {"value": None})
        if isinstance(reply, Exception):
            self.gone = True
            raise reply
        return reply

    def request(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        self.ask(request, limit)
        return self.wait()

    def kill(self) -> None:
        self.gone = True

    close = kill

    @property
    def done(self) -> list[str]:
        return [request["do"] for request, _ in self.asked]


@pytest.fixture
def children(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[MadeUpChild]:
    """All that were started. They share their replies, but not what they were asked."""
    started: list[MadeUpChild] = []
    replies: dict[str, Any] = {
        "prepare": {"value": {troublesome.id: fingerprint(troublesome)}},
        "sample": {"value": {"samples": [1.0], "conditions": {}}},
    }

    def start() -> MadeUpChild:
        started.append(MadeUpChild(replies))
        return started[-1]

    monkeypatch.setattr(remote, "Child", start)
    return started


def failure(name: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"type": name, "message": message}}


def gpu_bench() -> RemoteBench:
    bench = Measuring("cuda:1", H200).bench(PROBLEM)
    assert isinstance(bench, RemoteBench)
    return bench


def test_nothing_starts_before_it_is_needed(children: list[MadeUpChild]) -> None:
    with Measuring("cuda:1", H200) as measuring:
        assert children == []
        measuring.bench(PROBLEM)
        measuring.bench(replace(PROBLEM, seqlen_q=8))
    assert len(children) == 1
    assert children[0].done == ["prepare", "open", "open"]
    assert children[0].gone


def test_requests_say_what_and_where(
    children: list[MadeUpChild], troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    bench = gpu_bench()
    bench.sample(candidate(troublesome, "x"), BUDGET)
    bench.check(candidate(troublesome, "y"))
    prepare, opening, sample, check = [request for request, _ in children[0].asked]
    assert prepare["threads"] == 3
    assert opening == {"do": "open", "problem": asdict(PROBLEM), "device": "cuda:1", "profile": H200.as_dict()}
    where = {"kernel": troublesome.id, "config": {"do": "x"}}
    assert sample == {"do": "sample", **where, "budget": asdict(BUDGET)}
    assert check == {"do": "check", **where, "config": {"do": "y"}}


def test_limits_grow_with_budget_and_problem(children: list[MadeUpChild], troublesome: Kernel) -> None:
    def limits(problem: AttentionProblem, budget: Budget) -> list[float]:
        bench = Measuring("cuda:1", H200).bench(problem)
        bench.sample(candidate(troublesome, ""), budget)
        bench.check(candidate(troublesome, ""))
        return [limit for request, limit in children[-1].asked if request["do"] != "prepare"]

    small = limits(PROBLEM, BUDGET)
    assert small[1] == pytest.approx(
        effort.REQUEST_LIMIT_SECONDS
        + effort.WARMUP_SECONDS
        + BUDGET.time_cap
        + effort.SAMPLE_LIMIT_CALLS * call_seconds(PROBLEM, H200)
    )
    patient = limits(PROBLEM, replace(BUDGET, warmup=3.0, time_cap=7.0))
    assert patient[1] - small[1] == pytest.approx(3.0 + 7.0 - BUDGET.time_cap)
    assert patient[2] == small[2]
    large = limits(replace(PROBLEM, batch=64, seqlen_q=1 << 16, seqlen_k=1 << 16), BUDGET)
    assert all(more > less + 0.01 for more, less in zip(large, small))


def test_conditions_add_up(children: list[MadeUpChild], troublesome: Kernel) -> None:
    bench = gpu_bench()
    children[0].replies["sample"] = {"value": {"samples": [2.0], "conditions": {"sm_mhz_highest": 9, "rejected": 2}}}
    assert bench.sample(candidate(troublesome, ""), BUDGET) == [2.0]
    bench.sample(candidate(troublesome, ""), BUDGET)
    assert bench.conditions == Conditions(sm_mhz_highest=9, rejected=4)


@pytest.mark.parametrize("do", ["sample", "check"])
@pytest.mark.parametrize("name", ["RuntimeError", "LaunchError", "TuningError", "AcceleratorError"])
def test_an_error_on_a_gpu_costs_the_child(
    children: list[MadeUpChild], troublesome: Kernel, do: str, name: str
) -> None:
    """A CUDA error stays, and a kernel with wrong results may have written anywhere."""
    bench = gpu_bench()
    children[0].replies[do] = failure(name)
    with pytest.raises(Exception, match="no"):
        bench.sample(candidate(troublesome, ""), BUDGET) if do == "sample" else bench.check(candidate(troublesome, ""))
    assert children[0].gone
    children[0].replies[do] = {"value": {"samples": [3.0], "conditions": {}}}
    bench.sample(candidate(troublesome, ""), BUDGET)
    assert children[1].done == ["prepare", "open", "sample"]
    assert len(children) == 2


def test_what_does_not_compile_costs_no_child(children: list[MadeUpChild], troublesome: Kernel) -> None:
    bench = gpu_bench()
    children[0].replies["sample"] = failure("CompileError")
    with pytest.raises(CompileError):
        bench.sample(candidate(troublesome, ""), BUDGET)
    assert not children[0].gone


def test_a_crash_while_opening_is_no_fault_of_a_config(children: list[MadeUpChild], troublesome: Kernel) -> None:
    """A config that crashed is never tried again; here it is the problem, or the machine."""
    bench = gpu_bench()
    children[0].kill()
    children[0].replies["open"] = CrashedError("gone")
    with pytest.raises(TuningError, match="inputs cannot be made: gone") as caught:
        bench.sample(candidate(troublesome, ""), BUDGET)
    assert not isinstance(caught.value, CrashedError)
    children[0].replies["prepare"] = CrashedError("gone")
    with pytest.raises(TuningError, match="no process can be started to measure or compile in: gone") as caught:
        bench.sample(candidate(troublesome, ""), BUDGET)
    assert not isinstance(caught.value, CrashedError)


def test_without_children_everything_is_measured_here(
    children: list[MadeUpChild], troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AVAILABLE", False)
    with Measuring("cpu", detect("cpu")) as measuring:
        assert isinstance(measuring.bench(PROBLEM), DeviceBench)
        assert not measuring.knows(troublesome)
    assert children == []


def test_kernels_must_have_the_same_code(
    children: list[MadeUpChild], troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Measuring("cpu", detect("cpu")).knows(troublesome)
    monkeypatch.setattr(type(troublesome), "source_hash", lambda self: "edited since")
    assert not Measuring("cpu", detect("cpu")).knows(troublesome)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, MemoryError, TuningError, CompileError, LaunchError])
def test_errors_are_rebuilt(kind: type[Exception]) -> None:
    error = rebuilt(kind.__name__, "why")
    assert type(error) is kind
    assert str(error) == "why"


@pytest.mark.parametrize("name", ["OutOfMemoryError", "KeyboardInterrupt", "SystemExit", "ArgumentError", "print", ""])
def test_other_errors_become_tuning_errors(name: str) -> None:
    """Also those that end a program, and those of faops that are made from more than a message."""
    error = rebuilt(name, "why")
    assert type(error) is TuningError
    assert not isinstance(error, ArgumentError)
    assert str(error) == f"{name}: why"
