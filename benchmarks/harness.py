"""Measuring candidates against each other: interleaved rounds, raw samples, medians, and ratios with their spread.

A candidate is a function that does its work once and returns the seconds of each of its phases. Rounds are interleaved
(A B C, A B C, ...), so that a disturbance of the machine hits all candidates alike, and the ratio of two candidates is
taken round by round.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from faops.autotune.measurement.clocks import quantile

Phases = dict[str, float]  # phase -> seconds
Candidate = Callable[[], Phases]
Samples = dict[str, list[float]]  # phase -> seconds of each round

DIGITS = 9  # samples are kept to the nanosecond
EQUAL = 0.03  # two runs of the very same code differ by that much


@dataclass(frozen=True)
class Effort:
    """How often to measure: rounds go on for ``seconds``, but at least ``min_rounds`` and at most ``max_rounds``.

    No round begins after ``limit`` seconds, even if fewer than ``min_rounds`` are done. Before the first come
    ``warmup_rounds`` that are thrown away.
    """

    seconds: float
    min_rounds: int = 3
    max_rounds: int = 50
    warmup_rounds: int = 1
    limit: float = math.inf


def interleave(candidates: Mapping[str, Candidate], effort: Effort) -> dict[str, Samples]:
    """The samples of every candidate and phase; sample i of all of them comes from round i."""
    found: dict[str, Samples] = {name: {} for name in candidates}
    with quiet_garbage():
        for _ in range(effort.warmup_rounds):
            for run in candidates.values():
                run()
        start = time.perf_counter()
        for done in range(effort.max_rounds):
            elapsed = time.perf_counter() - start
            if (done >= effort.min_rounds and elapsed >= effort.seconds) or elapsed >= effort.limit:
                break
            for name, run in candidates.items():
                for phase, seconds in run().items():
                    found[name].setdefault(phase, []).append(seconds)
    return found


def batch_of(call: Callable[[], Any], count: int) -> Candidate:
    """A candidate that makes ``count`` calls and returns the seconds of one as phase "call"."""
    repeats = range(count)

    def run() -> Phases:
        start = time.perf_counter()
        for _ in repeats:
            call()
        return {"call": (time.perf_counter() - start) / count}

    return run


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Median, spread and the raw samples, all in seconds."""
    return {
        "median": round(statistics.median(samples), DIGITS),
        "p20": round(quantile(samples, 0.2), DIGITS),
        "p80": round(quantile(samples, 0.8), DIGITS),
        "min": round(min(samples), DIGITS),
        "n": len(samples),
        "samples": [round(value, DIGITS) for value in samples],
    }


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast ours is (above 1: faster): the ratio of medians, and median and spread of the ratios of
    pairs, where a pair is what was measured in the same round.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} samples do not pair up")
    pairs = [their / our for our, their in zip(ours, theirs)]
    return {
        "of_medians": round(statistics.median(theirs) / statistics.median(ours), 4),
        "of_pairs": round(statistics.median(pairs), 4),
        "pairs_p20": round(quantile(pairs, 0.2), 4),
        "pairs_p80": round(quantile(pairs, 0.8), 4),
    }


def verdict(ratio: Mapping[str, float], bar: float) -> str:
    """ "met" where the median pair reaches ``bar``, "noise" where it comes within EQUAL of it or at least one pair in
    five reaches it, else "below"."""
    if ratio["of_pairs"] >= bar:
        return "met"
    return "noise" if ratio["pairs_p80"] >= bar or ratio["of_pairs"] >= bar * (1 - EQUAL) else "below"


@contextmanager
def quiet_garbage() -> Iterator[None]:
    """Collect garbage now and not inside the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
