"""The raw CUDA forward kernels as the registry sees them."""

from __future__ import annotations

from torch import Tensor

from faops import defaults
from faops.backends.cuda_raw import footprint, host, space
from faops.backends.cuda_raw.base import RawKernel
from faops.backends.cuda_raw.tiles import MATRIX_ROWS, Family, halved
from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.footprint import Footprint, Resources
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem
from faops.registry import Config


class RawForward(RawKernel):
    """What the forward kernels share; each family says which devices and dtypes are its own."""

    op = "forward"
    layouts = ("dense", "varlen")
    family: Family

    def most_blocks(self, problem: AttentionProblem) -> int:
        return problem.batch * problem.heads_q * -(-problem.seqlen_q // 64)

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

    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.space(self.family, problem.head_dim, problem.head_dim_v, device)

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return self.tiles(problem, host.target_device(device) or device)

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        out = empty_out(inputs.q, inputs.v.shape[-1])
        lse = empty_lse(inputs.q) if inputs.need_lse else None
        if out.numel() > 0 or (lse is not None and lse.numel() > 0):
            host.run(self.family, inputs, out, lse, config)
        return out, lse

    def count(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.footprint(self.family, problem, device, config)

    def compile_for(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        from faops.backends.cuda_raw import ahead

        return ahead.compile(self.family, problem, device, config)
