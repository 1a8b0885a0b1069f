"""Time of torch operations on a CPU: tasks dealt to threads, products, passes over tiles, and starting operations.

Each operation works by itself, so their times add up. Passes run at the speed of the cache that holds what a thread
comes back to, or at memory's.
"""

from __future__ import annotations

import math

from faops.autotune.model import estimates
from faops.autotune.model.estimate import Estimate
from faops.device import DeviceProfile
from faops.footprint import Footprint


def estimate(part: Footprint, device: DeviceProfile) -> Estimate:
    """The time of one footprint; ``waves`` are the rounds in which the tasks are dealt out."""
    threads = max(1, min(part.threads or device.threads or device.units or 1, max(1, device.units or part.threads)))
    rounds = math.ceil(part.blocks / threads)
    share = max(rounds / max(1, part.blocks), part.longest / max(1, part.blocks))  # that the busiest thread does
    products = part.matrix_flops / (part.matrix_share * flops(device))
    compute = share * (products + part.exponentials / estimates.CPU_EXPONENTIALS)
    cache = device.l2_bytes or estimates.CPU_CACHE_BYTES
    missed = max(0.0, 1.0 - cache / part.shared_bytes) if part.shared_bytes else 0.0
    near, far = estimates.CPU_CACHE_BANDWIDTH, estimates.CPU_SHARED_CACHE_BANDWIDTH
    moving = share * part.traffic * ((1.0 - missed) / near + missed / far)
    memory = part.memory / estimates.CPU_MEMORY_BANDWIDTH
    starting = part.launches * (estimates.CPU_OPERATION_SECONDS + (threads > 1) * estimates.CPU_FORK_SECONDS)
    seconds = compute + moving + memory + starting
    times = {"compute": compute, "memory": moving + memory, "overhead": starting}
    return Estimate(seconds, 0, rounds, max(times, key=times.__getitem__))


def flops(device: DeviceProfile) -> float:
    """FLOP/s of a thread in products of float32 matrices: two multiply-adds a clock of as many lanes as there are."""
    lanes = 16 if "avx512" in device.arch else 8 if "avx2" in device.arch else 4
    return estimates.CPU_EFFICIENCY * estimates.CPU_CLOCK * 2 * 2 * lanes
