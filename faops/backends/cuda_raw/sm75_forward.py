"""The forward kernel of Turing: m16n8k8 products, copies through registers."""

from __future__ import annotations

from collections.abc import Iterator

from faops.architectures import cuda_number
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.space import SM75, make_config
from faops.device import DeviceProfile
from faops.problem import AttentionProblem
from faops.registry import Config


class Sm75Forward(RawForward):
    """CUDA C++ in csrc/sm75_forward.cu."""

    name = "sm75_forward"
    priority = 30  # above SDPA, which has no flash kernel for Turing
    family = SM75

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        if cuda_number(device.arch) != self.family.arch:
            yield f"it is written for Turing (sm_75); cuda_raw.sm80_forward serves {device.arch}"

    def dtype_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        yield from super().dtype_reasons(problem)
        if problem.dtype == "bfloat16":
            yield (
                "Turing multiplies no bfloat16, and going through float16 would lose values outside its range "
                "(6e-8 to 65504), which the kernel cannot see beforehand"
            )

    def large_tiles(self, head_dim: int, device: DeviceProfile) -> Config:
        """Eight warps to a multiprocessor; 32 rows a warp where two such blocks fit its registers and 64 KiB.

        With 16 rows a warp the fragments keep shared memory, 64 bytes a clock here, as busy as the tensor cores.
        """
        if head_dim <= 64:
            return make_config(128, 64, warps=4, stages=1, q_in_registers=True)
        if head_dim <= 128:
            return make_config(128, 64, warps=8, stages=1, q_in_registers=True)
        return self.small_tiles(head_dim)

    def small_tiles(self, head_dim: int) -> Config:
        if head_dim <= 64:
            return make_config(64, 64, warps=4, stages=1, q_in_registers=True)
        if head_dim <= 128:
            return make_config(64, 32, warps=4, stages=1, q_in_registers=True)
        return make_config(64, 16, warps=4, stages=1, q_in_registers=False)
