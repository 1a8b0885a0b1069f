"""Compiling in several processes: each candidate once, as they are done, and what a lost process costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from faops import registry
from faops.autotune import effort
from faops.autotune.measurement import pool as pool_module
from faops.autotune.measurement import process, remote
from faops.autotune.measurement.pool import Compiled, CompilePool, compile_all, compiles
from faops.autotune.measurement.process import Child
from faops.autotune.measurement.worker import fingerprint
from faops.autotune.search.candidates import Candidate
from faops.device import known
from faops.errors import CompileError, CrashedError, FaopsError, FaopsWarning, HangError, TuningError
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

from ..support import FakeKernel
from .processes import alive, compiler, descriptors, ends

PROBLEM = AttentionProblem(dtype="float16", seqlen_q=128, seqlen_k=128, heads_q=4, heads_kv=2)
H200 = known("h200")
FINE = Resources(registers=32, spill_bytes=0, shared_bytes=1024)


@pytest.fixture
def started(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """All processes that were started. They compile by doing what a config says, as Python text."""
    found: list[Child] = []
    program = compiler({troublesome.id: fingerprint(troublesome)})

    def start() -> Child:
        found.append(Child(program))
        return found[-1]

    monkeypatch.setattr(remote, "Child", start)
    return found


@pytest.fixture
def candidates(troublesome: Kernel) -> Callable[..., list[Candidate]]:
    def make(*deeds: str) -> list[Candidate]:
        return [Candidate(troublesome, Config(do=deed, number=number)) for number, deed in enumerate(deeds)]

    return make


Candidates = Callable[..., list[Candidate]]


def compiled(found: list[Candidate], processes: int = 2) -> dict[Candidate, Compiled]:
    results: list[tuple[Candidate, Compiled]] = []
    compile_all(PROBLEM, H200, found, lambda *result: results.append(result), processes)
    assert len(results) == len(dict(results))
    return dict(results)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_candidate_is_compiled_once(started: list[Child], candidates: Candidates, processes: int) -> None:
    before = descriptors()
    wanted = candidates(*[f"compiled({32 + number})" for number in range(8)])
    results = compiled(wanted, processes)
    assert results == {candidate: Resources(32 + number, 0, 1024) for number, candidate in enumerate(wanted)}
    assert len(started) == processes
    assert all(child.closed for child in started)
    assert descriptors() == before


def test_no_more_processes_start_than_there_are_candidates(started: list[Child], candidates: Candidates) -> None:
    assert compiled(candidates(""), processes=4) == {candidates("")[0]: FINE}
    assert len(started) == 1
    assert compiled([], processes=4) == {}
    assert len(started) == 1


def test_results_come_as_they_are_ready(started: list[Child], candidates: Candidates) -> None:
    slow, quick = candidates("time.sleep(1); compiled(1)", "")
    with CompilePool(2) as pool:
        assert [candidate for candidate, _ in pool.compiled(PROBLEM, H200, [slow, quick])] == [quick, slow]


def test_the_request_says_what_to_compile(started: list[Child], candidates: Candidates) -> None:
    text = 'compiled([request["kernel"], request["problem"]["seqlen_k"], request["profile"]["arch"], request["limit"]])'
    (result,) = compiled(candidates(text)).values()
    assert isinstance(result, Resources)
    assert result.registers == ["troublesome.forward", 128, "sm_90", effort.COMPILE_LIMIT_SECONDS]


def test_nothing_to_compile_starts_nothing(started: list[Child], candidates: Candidates) -> None:
    fake = Candidate(FakeKernel(), Config(block=1))
    assert not compiles(fake.kernel)
    assert compiled([fake]) == {fake: None}
    assert started == []
    (fine,) = candidates("")
    assert compiled([fine, fake]) == {fake: None, fine: FINE}


def test_a_process_may_find_nothing_to_compile(started: list[Child], candidates: Candidates) -> None:
    assert list(compiled(candidates("reply(None)")).values()) == [None]


def test_an_error_costs_one_candidate(started: list[Child], candidates: Candidates) -> None:
    wanted = candidates("", 'fail("CompileError", "too many registers")', 'fail("ValueError", "what")', "")
    results = list(compiled(wanted, processes=1).items())
    assert [candidate for candidate, _ in results] == wanted
    assert results[0][1] == results[3][1] == FINE
    assert type(results[1][1]) is CompileError
    assert str(results[1][1]) == "too many registers"
    assert isinstance(results[2][1], FaopsError)
    assert str(results[2][1]) == "ValueError: what"
    assert len(started) == 1


def test_a_crash_or_hang_costs_one_candidate(
    started: list[Child], candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "COMPILE_LIMIT_SECONDS", 2.0)
    crashing, hanging, *fine = candidates("ctypes.string_at(0)", "time.sleep(100)", *[""] * 6)
    results = compiled([crashing, hanging, *fine])
    assert isinstance(results[crashing], CrashedError)
    assert "SIGSEGV" in str(results[crashing])
    assert isinstance(results[hanging], HangError)
    assert [results[candidate] for candidate in fine] == [FINE] * 6
    assert len(started) == 3  # the process that hung may have been the last at work
    assert all(child.closed for child in started)


def test_the_processes_are_kept_for_the_next_problem(started: list[Child], candidates: Candidates) -> None:
    with CompilePool(2) as pool:
        for _ in range(3):
            assert len(list(pool.compiled(PROBLEM, H200, candidates("", "", "")))) == 3
        assert len(started) == 2
        started[0].kill()
        assert len(list(pool.compiled(PROBLEM, H200, candidates("", "", "")))) == 3
    assert len(started) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing_running(
    started: list[Child], candidates: Candidates, error: type[BaseException]
) -> None:
    def interrupt(candidate: Candidate, result: Compiled) -> None:
        raise error

    with pytest.raises(error):
        compile_all(PROBLEM, H200, candidates("", "time.sleep(100)", "time.sleep(100)"), interrupt, 3)
    assert len(started) == 3
    assert not any(alive(child.process.pid) for child in started)


def test_hearing_enough_frees_the_processes(started: list[Child], candidates: Candidates) -> None:
    """Those at work are ended, and the pool goes on with others."""
    with CompilePool(2) as pool:
        results = pool.compiled(PROBLEM, H200, candidates("", "time.sleep(100)", "time.sleep(100)", ""))
        assert next(results)[1] == FINE
        results.close()
        assert all(ends(child.process.pid) for child in started if child.closed)
        assert any(child.closed for child in started)
        start = time.monotonic()
        assert len(list(pool.compiled(PROBLEM, H200, candidates("", "")))) == 2
        assert time.monotonic() - start < 50


def test_processes_work_while_the_caller_does_something_else(started: list[Child], candidates: Candidates) -> None:
    with CompilePool(1) as pool:
        results = pool.compiled(
            PROBLEM, H200, candidates("", "compiled(1); open('/proc/self/comm', 'w').write('done')")
        )
        next(results)
        deadline = time.monotonic() + 20
        while name_of(started[0].process.pid) != "done" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert name_of(started[0].process.pid) == "done"
        assert len(list(results)) == 1


def name_of(number: int) -> str:
    with open(f"/proc/{number}/comm") as name:
        return name.read().strip()


def test_kernels_of_this_process_alone_are_compiled_here(started: list[Child], troublesome: Kernel) -> None:
    private = sys.modules[type(troublesome).__module__].Private()
    registry.register(private)
    try:
        fine, wrong = (Candidate(private, Config(do=deed)) for deed in ("", "wrong"))
        results = compiled([fine, wrong])
    finally:
        registry.unregister(private.id)
    assert results[fine] == private.compile(PROBLEM, H200, fine.config)
    assert type(results[wrong]) is CompileError


def test_where_no_process_can_be_spoken_to_everything_is_compiled_here(
    started: list[Child], troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "AVAILABLE", False)
    one = Candidate(troublesome, Config(do=""))
    assert compiled([one]) == {one: troublesome.compile(PROBLEM, H200, one.config)}
    assert started == []


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import time; time.sleep(100)"])
def test_processes_that_cannot_start_are_told(
    candidates: Candidates, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(remote, "Child", partial(Child, program))
    monkeypatch.setattr(effort, "START_LIMIT_SECONDS", 0.5)
    with pytest.raises(TuningError, match="no process can be started to measure or compile in") as caught:
        compiled(candidates("", "", ""))
    assert not isinstance(caught.value, CrashedError)


def test_warnings_are_told(started: list[Child], candidates: Candidates) -> None:
    text = "send(json.dumps({'serial': request['serial'], 'value': None, 'warnings': ['full']}))"
    with pytest.warns(FaopsWarning, match="full"):
        compiled(candidates(text))


def test_a_real_process_compiles(troublesome: Kernel) -> None:
    one = Candidate(troublesome, Config(do=""))
    assert compiled([one], processes=1) == {one: troublesome.compile(PROBLEM, H200, one.config)}


def test_the_number_of_processes_leaves_a_core_to_this_one() -> None:
    assert effort.COMPILE_PROCESSES >= 1
    assert len(CompilePool().helpers) == effort.COMPILE_PROCESSES
    assert len(CompilePool(0).helpers) == 1
    assert process.AVAILABLE
