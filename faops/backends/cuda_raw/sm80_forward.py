"""The forward kernel of Ampere, Ada and whatever is newer: m16n8k16 products, cp.async."""

from __future__ import annotations

from collections.abc import Iterator

from faops.architectures import cuda_number
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.space import SM80, make_config
from faops.device import DeviceProfile
from faops.registry import Config

SMALL_SHARED = 100 * 1024  # 8.6, 8.9 and 12.0 have 99 KiB a block, the others 163 and more


class Sm80Forward(RawForward):
    """CUDA C++ in csrc/sm80_forward.cu."""

    name = "sm80_forward"
    priority = 18  # below SDPA's own kernels, where they serve, until it is measured against them
    family = SM80

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        if cuda_number(device.arch) < self.family.arch:
            yield f"{device.arch} has no cp.async and no m16n8k16 products, which came with sm_80"

    def large_tiles(self, head_dim: int, device: DeviceProfile) -> Config:
        """32 query rows a warp, so that each fragment of keys and values feeds two products, as far as registers go."""
        if head_dim <= 64:
            return make_config(128, 64, warps=4, stages=2, q_in_registers=True)
        if head_dim <= 96:
            return make_config(128, 64, warps=4, stages=1, q_in_registers=False)
        if head_dim <= 128:
            # Two blocks to a multiprocessor. 64 keys a tile would need a few registers more than there are.
            stages = 1 if device.shared_bytes <= SMALL_SHARED else 2
            return make_config(128, 32, warps=4, stages=stages, q_in_registers=False)
        return self.small_tiles(head_dim)

    def small_tiles(self, head_dim: int) -> Config:
        if head_dim <= 128:
            return make_config(64, 64, warps=4, stages=2 if head_dim <= 64 else 1, q_in_registers=True)
        return make_config(64, 64 if head_dim <= 192 else 32, warps=4, stages=1, q_in_registers=False)
