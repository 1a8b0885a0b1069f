"""The forward kernel of Turing: m16n8k8 products, copies through registers."""

from __future__ import annotations

from collections.abc import Iterator

from faops.architectures import cuda_number
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.tiles import SM75
from faops.device import DeviceProfile
from faops.problem import AttentionProblem


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
