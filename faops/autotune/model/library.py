"""Time of operations that a library runs on a GPU or NPU: nobody knows its tiles, so the device counts as full.

Roofline (Williams, Waterman and Patterson 2009), once for all operations together, and the time to start each.
"""

from __future__ import annotations

from faops.autotune.model import estimates
from faops.autotune.model.estimate import Estimate
from faops.autotune.model.rates import rates
from faops.device import DeviceProfile
from faops.footprint import Footprint


def estimate(part: Footprint, device: DeviceProfile) -> Estimate:
    """The time of one footprint."""
    rate = rates(device)
    compute = (
        part.matrix_flops / (estimates.MATRIX_EFFICIENCY * rate.matrix * part.matrix_share)
        + part.vector_flops / (estimates.VECTOR_EFFICIENCY * rate.vector)
        + part.exponentials / rate.exponentials
    )
    memory = max(part.traffic, part.memory) / (estimates.MEMORY_EFFICIENCY * rate.memory)
    starting = part.launches * estimates.LIBRARY_SECONDS
    seconds = max(compute, memory, starting) + estimates.LIBRARY_SECONDS
    bound = "overhead" if starting >= max(compute, memory) else "compute" if compute >= memory else "memory"
    return Estimate(seconds, 0, 1, bound)
