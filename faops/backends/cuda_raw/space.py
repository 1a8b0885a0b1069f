"""The tuning space of the forward kernels: which configs are legal on a device. Nothing here shapes a kernel, so that
winners outlive a change of this file.
"""

from __future__ import annotations

from faops.backends.cuda_raw.tiles import MATRIX_ROWS, Family, make_config, matrix_registers, shared_bytes
from faops.device import DeviceProfile
from faops.registry import Config


def is_legal(family: Family, config: Config, head_dim: int, head_dim_v: int, device: DeviceProfile) -> bool:
    """Whether the config fits ``device``, its registers as far as a count of matrix elements can tell."""
    large = config.integer("tile_m") == 128 and config.integer("warps") == 4 and config.integer("tile_n") <= 64
    allowed = family.register_limit + (family.register_margin if large else 0)
    limit = min(device.shared_bytes or device.limits.shared_per_block, device.limits.shared_per_block)
    return (
        config.integer("tile_m") % (MATRIX_ROWS * config.integer("warps")) == 0
        and shared_bytes(family, config, head_dim, head_dim_v) <= limit
        and matrix_registers(family, config, head_dim, head_dim_v) <= allowed
    )


def space(family: Family, head_dim: int, head_dim_v: int, device: DeviceProfile) -> list[Config]:
    """The legal configs, in a fixed order."""
    wide = max(head_dim, head_dim_v) > 128  # fewer keys a tile fit, and still fill it
    candidates = (
        make_config(tile_m, tile_n, warps, stages, q_in_registers)
        for tile_m, warps in ((64, 4), (128, 4), (128, 8), (64, 2))
        for tile_n in ((16, 32, 64) if wide else (32, 64, 128))
        if warps > 2 or tile_n == 32
        for stages in ((1, 2) if family.asynchronous else (1,))
        for q_in_registers in (True, False)
    )
    return [config for config in candidates if is_legal(family, config, head_dim, head_dim_v, device)]
