"""Time of a grid of thread blocks on an NVIDIA device.

A multiprocessor works on n blocks at a time, n from occupancy. Each part of their work (products, other arithmetic,
exponentials, bytes from the second-level cache) has a time at the unit's full rate. With w warps a scheduler a part
waits for the others 1/w of the time (FlashAttention-3, Shah et al. 2024, section 3.1, overlaps them by hand):

    busy(w) = largest part + (sum of parts - largest) / w

One block by itself takes ``chain``: its busy time, and in every step what nothing overlaps. So a wave of n blocks takes

    period(n) = max(n * busy(n * warps / 4), chain)

Equal blocks come in whole waves and a last one that may be nearly empty (NVIDIA, Matrix Multiplication Background,
Wave Quantization). Uneven ones, of a causal band, fill each other's gaps, but never end before the longest. The
roofline of memory (Williams, Waterman and Patterson 2009) lies over all of it, as far as enough bytes are on their way
(Little's law).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from faops.autotune.model import estimates
from faops.autotune.model.estimate import Estimate
from faops.autotune.model.rates import rates
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.occupancy import WARP, blocks_by_resource


def estimate(part: Footprint, device: DeviceProfile) -> Estimate:
    """The time of one launch."""
    fitting = blocks_by_resource(device.arch, part.registers, part.shared_bytes, part.threads)
    resident = min(fitting.values())
    if resident == 0:
        return Estimate(math.inf, 0, 0, "latency", _too_much(part, device, fitting))
    block = _Block.of(part, device)
    units = max(1, device.units)
    compute, memory = _compute(part, block, units, resident), _memory(part, device, units, resident)
    seconds = max(compute, memory) + part.launches * estimates.LAUNCH_SECONDS
    waves = math.ceil(part.blocks / (units * resident))
    return Estimate(seconds, resident, waves, _bound(part, block, units, compute, memory), _spills(part))


def _too_much(part: Footprint, device: DeviceProfile, fitting: dict[str, int]) -> str:
    limit = device.limits
    reasons = {
        "shared memory": f"a block takes {part.shared_bytes} bytes of shared memory, {device.arch} has "
        f"{limit.shared_per_block}",
        "registers": f"{part.threads} threads of {part.registers} registers do not fit the {limit.registers_per_unit} "
        f"of {device.arch}",
        "warps": f"a block of {part.threads} threads is more than {device.arch} takes",
    }
    return "; ".join(text for name, text in reasons.items() if fitting[name] == 0)


def _spills(part: Footprint) -> str:
    if part.spill_bytes <= estimates.SPILL_LIMIT:
        return ""
    return f"a thread spills {part.spill_bytes} bytes, more than {estimates.SPILL_LIMIT}"


class _Block(NamedTuple):
    """A mean block, in seconds: the largest part of its work at a unit's full rate and all parts together, what it
    waits besides, and what its loads take one behind the other. ``warps`` a scheduler.
    """

    largest: float
    total: float
    waits: float
    stream: float
    warps: float

    @staticmethod
    def of(part: Footprint, device: DeviceProfile) -> _Block:
        rate = rates(device)
        blocks = max(1, part.blocks)
        share = max(1, device.units) / blocks  # of a unit's work, a block's
        spilled = 2.0 * part.spill_bytes * part.threads * part.steps
        parts = (
            share * part.matrix_flops / (estimates.MATRIX_EFFICIENCY * part.matrix_share * rate.matrix),
            share * part.vector_flops / (estimates.VECTOR_EFFICIENCY * rate.vector),
            share * part.exponentials / rate.exponentials,
            share * part.traffic / rate.l2 + spilled / (estimates.L1_BYTES_A_CLOCK * rate.clock),
            share * part.shared_traffic / rate.shared,
        )
        waits = (part.steps * estimates.STEP_CLOCKS + estimates.BLOCK_CLOCKS) / rate.clock
        stream = 0.0
        if part.in_flight > 0:
            stream = part.traffic / blocks / part.in_flight * estimates.L2_LATENCY
        else:
            waits += part.steps * estimates.L2_LATENCY
        return _Block(max(parts), sum(parts), waits, stream, part.threads / WARP / estimates.SCHEDULERS)

    def busy(self, count: int) -> float:
        """Seconds of work for each of ``count`` blocks that overlap, waits aside."""
        return self.largest + (self.total - self.largest) / max(1.0, count * self.warps)

    @property
    def chain(self) -> float:
        """Seconds that a block takes by itself."""
        return max(self.busy(1) + self.waits, self.stream)

    def period(self, count: int) -> float:
        """Seconds until ``count`` blocks that a unit begins together are done."""
        return max(count * self.busy(count), self.chain) if count else 0.0


def _compute(part: Footprint, block: _Block, units: int, resident: int) -> float:
    """Seconds as far as the units themselves go."""
    if part.longest <= estimates.UNEVEN:
        waves, rest = divmod(part.blocks, units * resident)
        return waves * block.period(resident) + block.period(math.ceil(rest / units))
    together = min(resident, max(1, math.ceil(part.blocks / units)))
    return max(part.blocks / (units * together) * block.period(together), part.longest * block.chain)


def _memory(part: Footprint, device: DeviceProfile, units: int, resident: int) -> float:
    """Seconds as far as memory goes.

    What is read again comes from the second-level cache as far as that holds what the blocks at work read.
    """
    at_work = min(part.blocks, units * resident)
    needed = part.memory * at_work / max(1, part.blocks)
    missed = max(0.0, 1.0 - device.l2_bytes / needed) if needed and device.l2_bytes else 0.0
    moved = part.memory + missed * max(0.0, part.traffic - part.memory)
    rate = estimates.MEMORY_EFFICIENCY * rates(device).memory
    if part.in_flight > 0:
        rate = min(rate, at_work * part.in_flight / estimates.MEMORY_LATENCY)
    return moved / rate


def _bound(part: Footprint, block: _Block, units: int, compute: float, memory: float) -> str:
    if max(compute, memory) < part.launches * estimates.LAUNCH_SECONDS:
        return "overhead"
    if memory >= compute:
        return "memory"
    working = part.blocks / units * block.largest
    return "compute" if 2 * working >= compute else "latency"
