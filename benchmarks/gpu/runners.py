"""Where kernels run: on a GPU, or on the CPU in the emulator. The tests of the suite need only the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.micro import SHARED_BYTES, UNTOUCHED, Micro, Words
from faops.architectures import cuda_number
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.params import Struct
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.targets import OLDEST, Target
from faops.device import DeviceProfile, detect, known

# As benchmarks.gpu.micro.FRAME declares it.
MICRO_PARAMS = Struct((("a", "const u32*"), ("b", "const u32*"), ("out", "u32*"), ("which", "int"), ("count", "int")))


class Runner(Protocol):
    """``profile`` describes the GPU, real or emulated; tensors belong on ``device``."""

    device: torch.device
    profile: DeviceProfile

    def launch(self, kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
        """Run a kernel to its end; ``tensors`` in the order of its parameters' pointers."""

    def raw(self, source: Source, packed: bytearray, grid: int, tensors: Sequence[Tensor]) -> None:
        """Run a kernel on ``tensors``, the last of which it writes, to its end."""


class Emulated:
    """The emulator as a card of that short name, such as "t4" or "a100"."""

    def __init__(self, card: str) -> None:
        self.device = torch.device("cpu")
        self.profile = known(card)

    def launch(self, kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
        emulator.launch(kernel, tensors, self.profile.arch)

    def raw(self, source: Source, packed: bytearray, grid: int, tensors: Sequence[Tensor]) -> None:
        buffers = [
            emulator.Buffer(tensor.data_ptr(), tensor.nbytes, index == len(tensors) - 1, f"tensor {index}")
            for index, tensor in enumerate(tensors)
        ]
        emulator.run(source, self.profile.arch, bytes(packed), grid, SHARED_BYTES, buffers)


class Device:
    """The current CUDA device; kernels are compiled for ``target``, or for the device itself where that is ""."""

    def __init__(self, target: str = "") -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.profile = detect(self.device)
        self._target = target

    def launch(self, kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
        from faops.backends.cuda_raw import launch

        if self._target:
            self._enqueue(kernel, kernel.packed(tensors))
        else:
            launch.launch(kernel, tensors)  # as calls do it
        torch.cuda.synchronize(self.device)

    def raw(self, source: Source, packed: bytearray, grid: int, tensors: Sequence[Tensor]) -> None:
        self._enqueue(Specialised(source, grid, SHARED_BYTES, bytes(packed), MICRO_PARAMS), packed)
        torch.cuda.synchronize(self.device)

    def _enqueue(self, kernel: Specialised, packed: bytearray) -> None:
        from faops.backends.cuda_raw import launch, nvrtc

        target = Target(self._target) if self._target else nvrtc.target_of(self.profile.arch)
        function = launch.Function(kernel, target)
        function(kernel.grid, torch.cuda.current_stream(self.device).cuda_stream, packed)


def runners_for(card: str) -> dict[str, Runner]:
    """By what to call them: the emulated ``card``, or the CUDA device where it is "".

    A newer device than Turing also runs code for Turing: the driver compiles PTX of compute_75, in which what hides
    behind the architecture in csrc/ptx.cuh is Turing's.
    """
    if card:
        return {"": Emulated(card)}
    found: dict[str, Runner] = {"": Device()}
    if cuda_number(found[""].profile.arch) > OLDEST:
        found[f" as compute_{OLDEST}"] = Device(f"compute_{OLDEST}")
    return found


def answer(runner: Runner, micro: Micro, source: Source, which: int) -> Words:
    """What micro-test number ``which`` of ``source`` writes."""
    blank = np.full(micro.expected.size, UNTOUCHED, dtype=np.uint32)
    a, b, out = (_tensor(words, runner.device) for words in (micro.a, micro.b, blank))
    packed = MICRO_PARAMS.pack({"which": which, "count": micro.count})
    MICRO_PARAMS.point(packed, [tensor.data_ptr() for tensor in (a, b, out)])
    runner.raw(source, packed, micro.grid, (a, b, out))
    return out.cpu().numpy().view(np.uint32)


def _tensor(words: Words, device: torch.device) -> Tensor:
    return torch.from_numpy(words.view(np.int32).copy()).to(device)
