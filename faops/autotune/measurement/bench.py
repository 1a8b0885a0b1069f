"""Timing and checking the candidates of one problem on a real device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from faops import registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement.clocks import Sampled, clock_for, current, sample, warm_up
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.measurement.nvml import watched
from faops.autotune.measurement.synthetic import converted, inputs_for
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile
from faops.errors import TuningError
from faops.problem import AttentionProblem

WIDER = {torch.float64: torch.float64, torch.float32: torch.float64}  # any other dtype is checked in float32
WITHOUT_FLOAT64 = ("npu", "mps")  # types of devices that multiply no matrices of float64
WITNESSES = {
    "forward": "torch.blockwise_forward",
    "backward": "torch.blockwise_backward",
    "decode": "torch.blockwise_decode",
}

RESULTS = {"forward": ("out", "lse"), "backward": ("dq", "dk", "dv", "dbias", "dsinks"), "decode": ("out", "lse")}
Results = list[Tensor | None]


class DeviceBench:
    """Runs candidates on random inputs of one problem. Raises TuningError when such inputs cannot be made.

    ``conditions`` are those of all samples so far.
    """

    def __init__(self, problem: AttentionProblem, device: torch.device, profile: DeviceProfile) -> None:
        self.problem = problem
        self.profile = profile
        self.device = device
        gpu, unwatched = watched(device)  # before anything else uses the device
        self.unwatched = Conditions(notes=(unwatched,) if unwatched else ())
        self.conditions = Conditions()
        try:
            self.clock = clock_for(device, profile, gpu)
            self.inputs = inputs_for(problem, device)
        except (RuntimeError, MemoryError) as error:
            raise TuningError(f"{problem}: inputs cannot be made: {error}") from None
        self.warm = False
        self.expected: Results | None = None

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call of ``kernel.launch``."""
        sampled = self.sampled(candidate, budget)
        self.conditions = self.conditions.merged(sampled.conditions)
        return sampled.samples

    def sampled(self, candidate: Candidate, budget: Budget) -> Sampled:
        """The same with the conditions of these samples alone."""

        def call() -> object:
            return candidate.kernel.launch(self.inputs, candidate.config)

        with current(self.device):
            if not self.warm:
                warm_up(call, self.clock, effort.WARMUP_SECONDS)
                self.warm = True
            found = sample(call, self.clock, budget)
        return replace(found, conditions=self.unwatched.merged(found.conditions))

    def check(self, candidate: Candidate) -> None:
        """Compare the candidate's results with those of a trusted kernel in a wider dtype. Raises TuningError."""
        with current(self.device):
            if self.expected is None:
                self.expected = self._trusted(candidate)
            found = list(candidate.kernel.launch(self.inputs, candidate.config))
        for name, result, expected in zip(RESULTS[self.problem.op], found, self.expected):
            if (result is None) is not (expected is None):
                raise TuningError(f"{name} is {'missing' if result is None else 'given unasked'}")
            if result is None or expected is None:
                continue
            error, allowed = relative_error(result, expected), self._tolerance(name)
            if not error <= allowed:
                raise TuningError(f"{name} is wrong: relative error {error:.1e}, allowed is {allowed:.0e}")

    def _tolerance(self, name: str) -> float:
        tolerance = effort.TOLERANCE[self.problem.dtype]
        if name == "lse":
            return min(tolerance, effort.LSE_TOLERANCE)
        return tolerance * effort.GRADIENT_FACTOR if self.problem.op == "backward" else tolerance

    def _trusted(self, candidate: Candidate) -> Results:
        """Results of the blockwise kernel on the same data in a wider dtype, made with bounded memory.

        Where the device has no wider one than float32, that is what float32 is compared with: other code, other tiles.
        """
        wide = WIDER.get(self.problem.torch_dtype, torch.float32)
        if self.profile.torch_type in WITHOUT_FLOAT64:
            wide = torch.float32
        problem = replace(self.problem, dtype=str(wide).removeprefix("torch."))
        witness = registry.get(WITNESSES[self.problem.op])
        if witness is None or not witness.check(problem, self.profile):
            raise TuningError(
                f"{candidate.kernel.id} cannot be checked: {WITNESSES[self.problem.op]} does not run this"
            )
        config = witness.default_config(problem, self.profile)
        return list(witness.launch(converted(self.inputs, wide), config))


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Largest difference of a row (the last dim) as a part of the row's largest expected value.

    By row, because the late rows of a causal problem are averages of many values and far smaller than the first. A
    row counts as no smaller than SMALLEST_ROW of the whole. inf for a wrong shape, and for infinities or NaN that are
    not expected.
    """
    if result.shape != expected.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    wide = result.to(expected.dtype)
    difference = torch.where(wide == expected, 0, wide - expected).abs()  # equal infinities differ by NaN
    rows = torch.where(torch.isfinite(expected), expected, 0).abs().amax(-1, keepdim=True)
    scale = rows.clamp(min=max(effort.SMALLEST_ROW * rows.max().item(), torch.finfo(expected.dtype).tiny))
    error = (difference / scale).max().item()
    return math.inf if math.isnan(error) else error
