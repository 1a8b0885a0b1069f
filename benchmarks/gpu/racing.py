"""Timing contenders on a device: those that agree with the truth, in interleaved rounds, and what follows from them.

A contender makes, from the tensors of one call, a function that does the timed work and returns its results; what
comes before that work, such as the forward of a backward, is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.outcome import WrongError
from benchmarks.harness import Candidate, Effort, Phases, interleave, speedup, summary
from faops.errors import FaopsError

Work = Callable[[], Any]  # returns a tensor or several
Contender = Callable[..., Work]

MIN_TIMED = 1e-3  # seconds between two events, so that their own cost and the host's disappear
MAX_CALLS = 50
# Of the norm of the truth, for 16-bit operands. bfloat16 keeps 8 bits of the probabilities too.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
EFFORT = Effort(2.0, min_rounds=20, max_rounds=200, warmup_rounds=3, limit=20.0)
QUICK_EFFORT = Effort(0.5, min_rounds=10, max_rounds=50, warmup_rounds=2, limit=5.0)


def contest(
    contenders: Mapping[str, Contender], sets: Sequence[tuple[Any, ...]], truths: Sequence[Tensor], tolerance: float,
    ours: Sequence[str], quick: bool, beside: Mapping[str, Work] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Times and ratios of all contenders that agree, why the others are absent, and the differences from ``truths``.

    ``sets`` are arguments of contenders; ``truths`` belong to the first, see :func:`agreeing`. What is ``beside`` is
    timed in the same rounds, but no contender.
    """
    good, reasons, differences = agreeing(contenders, sets[0], truths, tolerance)
    works: dict[str, Sequence[Work]] = {name: [contenders[name](*one) for one in sets] for name in good}
    samples = measure({**works, **{name: [work] for name, work in (beside or {}).items()}}, quick)
    peers = [name for name in good if name not in ours]
    return {
        "difference": differences,
        "absent": reasons,
        "times": {name: summary(values) for name, values in samples.items()},
        "ratios": {
            name: {peer: speedup(samples[name], samples[peer]) for peer in peers} for name in ours if name in samples
        },
    }


def judged(data: dict[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """``data`` of a contest. Raises WrongError, which keeps it, where one of ours failed or disagreed."""
    reasons = data["absent"]
    if failed := [f"{name}: {reasons[name]}" for name in ours if name in reasons]:
        raise WrongError("; ".join(failed), data)
    return data


def ranking(
    contenders: Mapping[str, Contender], default: str, sets: Sequence[tuple[Any, ...]], truths: Sequence[Tensor],
    tolerance: float, quick: bool, rate: str, amount: float,
) -> dict[str, Any]:  # fmt: skip
    """Contenders that are configs of one kernel, the fastest first, with what ``amount`` a call makes a second as
    ``rate``. Raises WrongError where one fails or disagrees.
    """
    data = contest(contenders, sets, truths, tolerance, (), quick)
    times = data["times"]
    order = sorted(times, key=lambda one: times[one]["median"])
    rates = per_second(amount, times)
    found = {
        "default": default,
        "absent": data["absent"],
        "configs": [{"config": one, rate: rates[one], "times": times[one]} for one in order],
    }
    return judged(found, list(contenders))


def agreeing(
    contenders: Mapping[str, Contender], arguments: tuple[Any, ...], truths: Sequence[Tensor], tolerance: float
) -> tuple[list[str], dict[str, str], dict[str, float]]:
    """Those that run and agree with the truth of one head, why the others do not, and the differences.

    ``truths`` are the last head of the last batch entry, (M, D) each, of the tensors (B, M, H, D) that work returns.
    """
    good: list[str] = []
    reasons: dict[str, str] = {}
    differences: dict[str, float] = {}
    for name, contender in contenders.items():
        try:
            found = contender(*arguments)()
            torch.cuda.synchronize()
        except (RuntimeError, FaopsError, ImportError, AssertionError) as error:
            reasons[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        results = (found,) if isinstance(found, Tensor) else found
        each = [(result[-1, :, -1].float() - truth).norm() / truth.norm() for result, truth in zip(results, truths)]
        difference = differences[name] = float(torch.stack(each).max())  # NaN if one is
        if difference <= tolerance:  # not for NaN
            good.append(name)
        else:
            reasons[name] = f"its result differs by {difference:.2g}, at most {tolerance:g} is allowed"
    return good, reasons, differences


def measure(works: Mapping[str, Sequence[Work]], quick: bool) -> dict[str, list[float]]:
    """Seconds of a call in each round."""
    rounds = {name: timed(some, calls_for(some)) for name, some in works.items()}
    return {name: one["call"] for name, one in interleave(rounds, QUICK_EFFORT if quick else EFFORT).items()}


def timed(works: Sequence[Work], calls: int) -> Candidate:
    """A candidate that makes ``calls`` calls between two events, each the next of ``works``."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def run() -> Phases:
        torch.cuda.synchronize()
        start.record()
        for number in range(calls):
            works[number % len(works)]()
        end.record()
        end.synchronize()
        return {"call": start.elapsed_time(end) * 1e-3 / calls}

    return run


def calls_for(works: Sequence[Work]) -> int:
    """How many calls take MIN_TIMED together."""
    seconds = timed(works, 2)()["call"]
    return max(1, min(MAX_CALLS, math.ceil(MIN_TIMED / seconds)))


def per_second(amount: float, times: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How much a contender makes a second whose median call makes ``amount``."""
    return {name: round(amount / one["median"], 2) for name, one in times.items()}
