"""What the raw CUDA kernels share as the registry sees them: where they run, and what their cards do."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from faops.architectures import cuda_number
from faops.backends.cuda_raw import host
from faops.backends.cuda_raw.source import CSRC
from faops.device import DeviceProfile
from faops.footprint import Footprint, Resources
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide, hash_of

MAX_HEAD_DIM = 256
MAX_BLOCKS = 2**31 - 1  # of a grid
TURING, AMPERE = 75, 80  # compute capabilities, times ten


class RawKernel(Kernel):
    """Says where the kernels run; each op adds its configs and its launch, each family which devices are its own."""

    backend = "cuda_raw"
    layouts: tuple[str, ...]

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        target = host.target_device(device)
        if target is None:
            yield host.not_a_target(device)
            return
        yield from self.device_reasons(target)
        yield from self.dtype_reasons(problem)
        if problem.layout not in self.layouts:
            yield f"it has no {problem.layout} layout"
        for name, size in (("head_dim", problem.head_dim), ("head_dim_v", problem.head_dim_v)):
            if size > MAX_HEAD_DIM:
                yield f"{name} {size} is more than {MAX_HEAD_DIM}"
        if self.most_blocks(problem) >= MAX_BLOCKS:
            yield f"the grid would have more than {MAX_BLOCKS} blocks"
        yield from host.missing(device)

    @abstractmethod
    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        """Why the family does not run on an NVIDIA device."""

    def dtype_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        """Why the family does not compute in the problem's dtype."""
        if problem.dtype == "float32":
            yield "tensor cores multiply float32 as tf32 only, whose 10 bits miss the accuracy that float32 asks for"
        elif problem.dtype not in ("float16", "bfloat16"):
            yield f"it computes in float16 and bfloat16, not in {problem.dtype}"
        if problem.fp8_descale:
            yield "it takes no fp8 descales"

    @abstractmethod
    def most_blocks(self, problem: AttentionProblem) -> int:
        """How many blocks the grid may have, whatever the config."""

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        target = host.target_device(device)
        default = self.default_config(problem, device)
        if target is None or target is not device:  # emulated: slow, and no config is faster than another
            return [default]
        found = self.space(problem, target)
        return found if default in found else [default, *found]

    @abstractmethod
    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        """The legal configs on an NVIDIA device."""

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint | None:
        """None in the emulator, whose time says nothing of a card's."""
        return self.count(problem, device, config) if device.vendor == "nvidia" else None

    @abstractmethod
    def count(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        """The footprint on an NVIDIA device."""

    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        """Into the cache of cubins, for ``device``'s target; nothing in the emulator, which a compiler of C++ makes."""
        return self.compile_for(problem, device, config) if device.vendor == "nvidia" else None

    @abstractmethod
    def compile_for(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        """:meth:`compile` for an NVIDIA device."""

    def source_hash(self) -> str:
        return _source_hash()


class TuringKernel(RawKernel):
    """m16n8k8 products, copies through registers."""

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        if cuda_number(device.arch) != TURING:
            yield f"it is written for Turing (sm_75); cuda_raw.sm80_{self.op} serves {device.arch}"

    def dtype_reasons(self, problem: AttentionProblem) -> Iterator[str]:
        yield from super().dtype_reasons(problem)
        if problem.dtype == "bfloat16":
            yield (
                "Turing multiplies no bfloat16, and going through float16 would lose values outside its range "
                "(6e-8 to 65504), which the kernel cannot see beforehand"
            )


class AmpereKernel(RawKernel):
    """m16n8k16 products, cp.async: Ampere, Ada and whatever is newer."""

    def device_reasons(self, device: DeviceProfile) -> Iterator[str]:
        if cuda_number(device.arch) < AMPERE:
            yield f"{device.arch} has no cp.async and no m16n8k16 products, which came with sm_80"


@functools.cache
def _source_hash() -> str:
    """Of everything that shapes these kernels: the modules of this package and the CUDA sources."""
    return hash_of((*Path(__file__).parent.glob("*.py"), *CSRC.iterdir()))
