"""From a footprint to a time. Blocks of threads, library operations and CPUs each have a module of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from faops.autotune.model import blocks, cpu, library
from faops.autotune.model.estimate import Estimate
from faops.device import DeviceProfile
from faops.footprint import Footprint, Resources
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel


@dataclass(frozen=True)
class Prediction:
    """What a config would do.

    ``seconds`` a call, infinite where it cannot run. Of the launch that takes longest: ``occupancy`` the blocks that a
    multiprocessor holds, 0 where that has no meaning; ``waves`` of such blocks, the last of them counted as a whole;
    ``bound`` what it waits for: "compute", "memory", "latency" (too few blocks, or steps that nothing overlaps) or
    "overhead" (starting it). ``obstacle`` is "" or why it cannot run, or should not be measured.
    """

    seconds: float
    occupancy: int
    waves: int
    bound: str
    obstacle: str = ""


def predict(
    kernel: Kernel,
    problem: AttentionProblem,
    device: DeviceProfile,
    config: Config,
    resources: Resources | None = None,
) -> Prediction | None:
    """What an accepted problem would cost with ``config``; None where the kernel has no footprint.

    ``resources`` are those of the compiled kernel, the heaviest where there are several.
    """
    footprint = kernel.footprint(problem, device, config)
    if footprint is None:
        return None
    return of_footprint(footprint if resources is None else with_resources(footprint, resources), device)


def of_footprint(footprint: Footprint, device: DeviceProfile) -> Prediction:
    """The same, of a footprint."""
    estimates = [_estimate(part, device) for part in footprint.parts()]
    slowest = max(estimates, key=lambda one: one.seconds)
    obstacle = next((one.obstacle for one in estimates if one.obstacle), "")
    seconds = math.fsum(one.seconds for one in estimates)
    return Prediction(seconds, slowest.occupancy, slowest.waves, slowest.bound, obstacle)


def with_resources(footprint: Footprint, resources: Resources) -> Footprint:
    """The footprint with what was compiled in place of the estimates, in the launch that multiplies most."""
    heaviest = max(footprint.parts(), key=lambda part: part.matrix_flops + part.vector_flops)
    return _replaced(footprint, heaviest, resources)


def _replaced(footprint: Footprint, heaviest: Footprint, resources: Resources) -> Footprint:
    if footprint is heaviest:
        return replace(
            footprint,
            registers=resources.registers,
            spill_bytes=resources.spill_bytes,
            shared_bytes=resources.shared_bytes,
            threads=resources.threads or footprint.threads,
        )
    assert footprint.then is not None
    return replace(footprint, then=_replaced(footprint.then, heaviest, resources))


def _estimate(part: Footprint, device: DeviceProfile) -> Estimate:
    if device.torch_type == "cpu":
        return cpu.estimate(part, device)
    if part.threads == 0:
        return library.estimate(part, device)
    return blocks.estimate(part, device)
