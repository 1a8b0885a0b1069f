"""The harness: order of the rounds, how many there are, and what is made of the samples."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest

from benchmarks.harness import Candidate, Effort, Phases, batch_of, interleave, speedup, summary, verdict


def noting(log: list[str], name: str) -> Candidate:
    def run() -> Phases:
        log.append(name)
        return {"call": float(len(log))}

    return run


def test_rounds_are_interleaved_and_warm_up_is_thrown_away() -> None:
    log: list[str] = []
    effort = Effort(seconds=0.0, min_rounds=3, warmup_rounds=1)
    samples = interleave({name: noting(log, name) for name in "ABC"}, effort)
    assert "".join(log) == "ABC" * 4
    assert samples["A"]["call"] == [4.0, 7.0, 10.0]  # the first round, 1.0, was warm-up
    assert samples["C"]["call"] == [6.0, 9.0, 12.0]


def test_rounds_go_on_for_the_time_asked_and_no_longer() -> None:
    def slow() -> Phases:
        time.sleep(0.02)
        return {"call": 0.02}

    timed = interleave({"slow": slow}, Effort(seconds=0.1, min_rounds=2, max_rounds=50, warmup_rounds=0))
    assert 2 <= len(timed["slow"]["call"]) <= 5
    capped = interleave({"fast": lambda: {"call": 0.0}}, Effort(seconds=60.0, max_rounds=7, warmup_rounds=0))
    assert len(capped["fast"]["call"]) == 7
    limited = interleave({"slow": slow}, Effort(seconds=9.0, min_rounds=5, warmup_rounds=0, limit=0.03))
    assert 1 <= len(limited["slow"]["call"]) <= 2


def test_a_phase_that_only_some_have_is_kept_for_those() -> None:
    candidates: dict[str, Candidate] = {"both": lambda: {"a": 1.0, "b": 2.0}, "one": lambda: {"a": 3.0}}
    samples = interleave(candidates, Effort(seconds=0.0, min_rounds=2))
    assert samples == {"both": {"a": [1.0, 1.0], "b": [2.0, 2.0]}, "one": {"a": [3.0, 3.0]}}


def test_garbage_is_not_collected_while_measuring() -> None:
    states: list[bool] = []

    def run() -> Phases:
        states.append(gc.isenabled())
        return {"call": 1.0}

    assert gc.isenabled()
    interleave({"it": run}, Effort(seconds=0.0))
    assert states and not any(states)
    assert gc.isenabled()


def test_batch_divides_by_the_number_of_calls() -> None:
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.005)

    start = time.perf_counter()
    seconds = batch_of(call, 4)()["call"]
    elapsed = time.perf_counter() - start
    assert len(calls) == 4
    assert 0.005 <= seconds <= elapsed / 4


def test_summary() -> None:
    found = summary([5.0, 1.0, 3.0, 2.0, 4.0])
    assert found == {"median": 3.0, "p20": 1.8, "p80": 4.2, "min": 1.0, "n": 5, "samples": [5.0, 1.0, 3.0, 2.0, 4.0]}


def test_speedup_pairs_what_was_measured_together() -> None:
    found = speedup(ours=[1.0, 10.0, 2.0], theirs=[3.0, 20.0, 2.0])
    assert found["of_medians"] == 1.5  # 3 / 2
    assert found["of_pairs"] == 2.0  # of 3, 2 and 1
    assert found["pairs_p20"] == pytest.approx(1.4)
    assert found["pairs_p80"] == pytest.approx(2.6)
    with pytest.raises(ValueError, match="pair"):
        speedup([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([2.0, 2.0, 2.1, 2.2, 2.3], "met"),
        ([1.8, 1.8, 1.9, 2.2, 2.3], "noise"),
        ([1.95] * 5, "noise"),
        ([1.7, 1.8, 1.9, 1.9, 2.1], "below"),
    ],
)
def test_verdict(theirs: list[float], expected: str) -> None:
    assert verdict(speedup([1.0] * 5, theirs), bar=2.0) == expected


def test_a_real_difference_is_seen() -> None:
    def spin(seconds: float) -> Callable[[], None]:
        def call() -> None:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass

        return call

    candidates = {"short": batch_of(spin(0.001), 2), "long": batch_of(spin(0.003), 2)}
    samples = interleave(candidates, Effort(seconds=0.0, min_rounds=9))
    assert speedup(samples["short"]["call"], samples["long"]["call"])["of_pairs"] > 1.5
