"""What the Triton kernels share as the registry sees them."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faops.backends.triton import footprint, versions
from faops.device import DeviceProfile, detect
from faops.errors import UnavailableError
from faops.footprint import Footprint, Resources
from faops.inputs import BackwardInputs
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, decide, hash_of

MAX_HEAD_DIM = 256
MAX_PROGRAMS = 2**31 - 1  # of a grid's first axis


class TritonKernel(Kernel):
    """Says where the kernels run; each kernel adds its configs and how it is launched."""

    backend = "triton"
    # Below SDPA's kernels and the raw CUDA ones, where they serve, until it is measured against them; above blockwise.
    priority = 16

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(self._reasons(problem, device))

    def _reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        if problem.dtype not in ("float16", "bfloat16", "float32"):
            yield f"it computes in float16, bfloat16 and float32, not in {problem.dtype}"
        if problem.fp8_descale:
            yield "it takes no fp8 descales"
        for name, size in (("head_dim", problem.head_dim), ("head_dim_v", problem.head_dim_v)):
            if size > MAX_HEAD_DIM:
                yield f"{name} {size} is more than {MAX_HEAD_DIM}"
        if problem.batch * problem.heads_q * -(-max(problem.seqlen_q, problem.seqlen_k) // 16) > MAX_PROGRAMS:
            yield f"the grid would have more than {MAX_PROGRAMS} programs"
        yield from self.missing(device)
        if reason := _refused.get((self.id, device.name, problem)):
            yield reason

    def missing(self, device: DeviceProfile) -> Iterator[str]:
        """What keeps the kernel from running on ``device``."""
        return versions.missing(device)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        if device.torch_type == "cpu":  # interpreted: slow, and no config is faster than another
            return [self.default_config(problem, device)]
        return self.space(problem, device)

    @abstractmethod
    def space(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        """The legal configs on a GPU, the default among them."""

    def launch(self, inputs: Any, config: Config) -> Any:
        try:
            return self.run(inputs, config)
        except UnavailableError as error:
            self._note(inputs, config, str(error))
            raise

    @abstractmethod
    def run(self, inputs: Any, config: Config) -> Any:
        """What :meth:`launch` does. Raises UnavailableError where a kernel does not compile or load."""

    def _note(self, inputs: Any, config: Config, reason: str) -> None:
        """Remember a problem whose default config does not compile, so that it is planned without this kernel."""
        of_call = inputs.forward if isinstance(inputs, BackwardInputs) else inputs
        problem, device = inputs.problem(), detect(of_call.q.device)
        if config == self.default_config(problem, device):
            _refused[self.id, device.name, problem] = reason

    def automatic(self, device: DeviceProfile) -> bool:
        """Not on a CPU: the interpreter is for debugging, and TRITON_INTERPRET may be meant for other kernels."""
        return device.torch_type != "cpu"

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint | None:
        """None where the kernel is interpreted, whose time says nothing of a card's."""
        return footprint.footprint(problem, device, config) if device.vendor == "nvidia" else None

    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        """Into Triton's own cache, for ``device``'s architecture; nothing where it would be interpreted."""
        if device.vendor != "nvidia":
            return None
        from faops.backends.triton import ahead

        return ahead.compile(problem, device, config)

    def source_hash(self) -> str:
        return _source_hash()


_refused: dict[tuple[str, str, AttentionProblem], str] = {}  # by kernel, device and problem: why it does not compile


@functools.cache
def _source_hash() -> str:
    """Of everything that shapes these kernels."""
    here = Path(__file__).parent
    return hash_of((*here.glob("*.py"), *(here / "kernels").glob("*.py")))
