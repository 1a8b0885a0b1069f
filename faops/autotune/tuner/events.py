"""What a run of the tuner tells while it goes on, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from faops.autotune.cache.entry import Entry
from faops.problem import AttentionProblem

Kind = Literal[
    "problem_started", "resumed", "compiling", "measured", "checking", "dropped", "quarantined", "problem_done", "warm",
    "skipped", "failed", "waiting", "busy", "unisolated",
]  # fmt: skip
Status = Literal["tuned", "warm", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """Progress of a run over problems numbered by ``index`` from 0 up to ``total``.

    ``done`` of about ``planned`` timings of this problem are taken; ``best`` is the shortest median so far, in seconds
    a call. ``elapsed`` and ``remaining`` are seconds of the whole run; remaining is an estimate from what was measured
    so far, no longer than the time budget, and None before anything was measured. By ``kind``:

    - "problem_started": its search begins.
    - "resumed": an interrupted run has measured it in part; ``done`` timings are taken over. ``message`` says so.
    - "compiling": ``done`` of ``planned`` configs are compiled (here they count configs), while others are measured.
    - "measured": a timing was taken and written down; ``message`` is its kernel with its config.
    - "checking": a finalist's results are compared with the reference; ``message`` is the finalist.
    - "dropped": a config failed; ``message`` is the config and why.
    - "quarantined": a config crashed or hung the measuring process, now or (then it is not tried) before.
    - "problem_done": the search is over, ``message`` is the speed-up and whether the winner was stored.
    - "warm": it has a valid entry; nothing is measured. "skipped": the time budget was spent. "failed": see message.
    - "waiting": another process is measuring on this device.
    - "busy": other programs use the CPU, or hold memory of the NPU, so that timings on it are not to be trusted.
    - "unisolated": it is measured in this process, where a config that crashes ends it; ``message`` says why.
    """

    kind: Kind
    problem: AttentionProblem
    index: int
    total: int
    done: int = 0
    planned: int = 0
    best: float | None = None
    message: str = ""
    elapsed: float = 0.0
    remaining: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of one problem. ``measurements`` is the number of timings taken, 0 when warm or skipped."""

    problem: AttentionProblem
    status: Status
    measurements: int
    entry: Entry | None
    message: str
