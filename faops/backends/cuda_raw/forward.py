"""The raw CUDA forward kernels as the registry sees them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from faops import defaults
from faops.backends.cuda_raw import footprint, host
from faops.backends.cuda_raw.source import CSRC
from faops.backends.cuda_raw.space import space
from faops.backends.cuda_raw.tiles import MATRIX_ROWS, Family, halved
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.footprint import Footprint, Resources
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide, hash_of

MAX_HEAD_DIM = 256
MAX_BLOCKS = 2**31 - 1  # of a grid


class RawForward(Kernel):
    """What the forward kernels share; each family says which devices, dtypes and configs are its own."""

    backend = "cuda_raw"
    op = "forward"
    family: Family

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        target = host.target_device(device)
        if target is None:
            yield host.not_a_target(device)
            return
        yield from self.device_reasons(target)
        yield from self.dtype_reasons(problem)
        if problem.layout not in ("dense", "varlen"):
            yield f"it has no {problem.layout} layout"
        for name, size in (("head_dim", problem.head_dim), ("head_dim_v", problem.head_dim_v)):
            if size > MAX_HEAD_DIM:
                yield f"{name} {size} is more than {MAX_HEAD_DIM}"
        if problem.batch * problem.heads_q * -(-problem.seqlen_q // 64) >= MAX_BLOCKS:
            yield f"the grid would have more than {MAX_BLOCKS} blocks"
        yield from host.missing(device)

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        """Why the family does not run on an NVIDIA device."""
        raise NotImplementedError

    def dtype_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        """Why the family does not compute in the problem's dtype."""
        if problem.dtype == "float32":
            yield "tensor cores multiply float32 as tf32 only, whose 10 bits miss the accuracy that float32 asks for"
        elif problem.dtype not in ("float16", "bfloat16"):
            yield f"it computes in float16 and bfloat16, not in {problem.dtype}"
        if problem.fp8_descale:
            yield "it takes no fp8 descales"

    def tiles(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        """The default config on an NVIDIA device."""
        config = Config(self._shipped(problem, device).config)
        # What these need beside the scores no longer fits the registers next to the largest tiles.
        crowded = problem.dropout or problem.bias or problem.mask or problem.layout == "varlen"
        rows = config.integer("tile_m") // config.integer("warps")
        return halved(config) if crowded and rows > MATRIX_ROWS and config.integer("tile_n") > 32 else config

    def _shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        """The shipped default for many rows, or for few.

        Half-empty tiles and idle multiprocessors both cost more than what larger tiles save.
        """
        large, small = (defaults.lookup(self.id, problem, device, case) for case in ("many rows", "few rows"))
        tiles = -(-problem.seqlen_q // int(large.config["tile_m"])) * problem.heads_q * problem.batch
        return small if problem.seqlen_q <= int(small.config["tile_m"]) or tiles < device.units else large

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault:
        return self._shipped(problem, host.target_device(device) or device)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        target = host.target_device(device)
        default = self.default_config(problem, device)
        if target is None or target is not device:  # emulated: slow, and no config is faster than another
            return [default]
        found = space(self.family, problem.head_dim, problem.head_dim_v, target)
        return found if default in found else [default, *found]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return self.tiles(problem, host.target_device(device) or device)

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        out = empty_out(inputs.q, inputs.v.shape[-1])
        lse = empty_lse(inputs.q) if inputs.need_lse else None
        if out.numel() > 0 or (lse is not None and lse.numel() > 0):
            host.run(self.family, inputs, out, lse, config)
        return out, lse

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint | None:
        """None in the emulator, whose time says nothing of a card's."""
        if device.vendor != "nvidia":
            return None
        return footprint.footprint(self.family, problem, device, config)

    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        """Into the cache of cubins, for ``device``'s target; nothing in the emulator, which a compiler of C++ makes."""
        if device.vendor != "nvidia":
            return None
        from faops.backends.cuda_raw import ahead

        return ahead.compile(self.family, problem, device, config)

    def source_hash(self) -> str:
        return _source_hash()


@functools.cache
def _source_hash() -> str:
    """Of everything that shapes these kernels: the modules of this package and the CUDA sources."""
    return hash_of((*Path(__file__).parent.glob("*.py"), *CSRC.iterdir()))
