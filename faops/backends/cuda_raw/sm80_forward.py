"""The forward kernel of Ampere, Ada and whatever is newer: m16n8k16 products, cp.async."""

from __future__ import annotations

from collections.abc import Iterator

from faops.architectures import cuda_number
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.tiles import SM80
from faops.device import DeviceProfile


class Sm80Forward(RawForward):
    """CUDA C++ in csrc/sm80_forward.cu."""

    name = "sm80_forward"
    priority = 18  # below SDPA's own kernels, where they serve, until it is measured against them
    family = SM80

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        if cuda_number(device.arch) < self.family.arch:
            yield f"{device.arch} has no cp.async and no m16n8k16 products, which came with sm_80"
