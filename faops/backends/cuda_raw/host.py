"""Where the kernels run: on an NVIDIA device, or on the CPU in the emulator, which FAOPS_EMULATE asks for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from faops import settings
from faops.backends.cuda_raw import nvrtc, targets
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.backends.cuda_raw.tiles import Family
from faops.device import DeviceProfile, detect, known
from faops.errors import CompileError, UnavailableError
from faops.inputs import AttentionInputs
from faops.operands import Operands, call_key
from faops.registry import Config

MEMO_LIMIT = 4096  # specialised calls kept; emptied when full

_specialised: dict[Hashable, Specialised] = {}
_broken: dict[str, str] = {}  # what made a device refuse these kernels in this process


def target_device(device: DeviceProfile) -> DeviceProfile | None:
    """The NVIDIA device that a kernel on ``device`` runs on: itself, the emulated one for a CPU, or None."""
    if device.vendor == "nvidia":
        return device
    if device.torch_type == "cpu" and (card := emulated_card()):
        return known(card)
    return None


def not_a_target(device: DeviceProfile) -> str:
    """Why there is no target device."""
    if device.torch_type == "cpu":
        return "it runs on NVIDIA GPUs; FAOPS_EMULATE=1 runs it on a CPU, slowly"
    return f"it runs on NVIDIA GPUs, not on {device.name}"


def emulated_card() -> str:
    """Short name of the card to emulate; "" for none."""
    return str(settings.get("emulate"))


def missing(device: DeviceProfile) -> Iterator[str]:
    """What this machine lacks to run the kernels on ``device``; nothing for a card that is not in it."""
    if device.vendor != "nvidia":
        from faops.backends.cuda_raw import emulator

        if reason := emulator.missing():
            yield reason
        return
    if reason := targets.unsupported(device.arch):
        yield reason
    if not torch.cuda.is_available():
        return
    if reason := nvrtc.installed():
        yield reason
    made, driver = nvrtc.packaged_version(), targets.driver_cuda_version()
    if made and driver and (reason := targets.driver_reason(made, driver)):
        yield reason
    if reason := _broken.get(device.name, ""):
        yield reason


def run(family: Family, inputs: AttentionInputs, out: Tensor, lse: Tensor | None, config: Config) -> None:
    """Compute ``out`` and ``lse``. Raises UnavailableError where the machine turns out unable to."""
    operands = Operands.of(inputs, out, lse)
    key = (family, config, *call_key(inputs, operands))  # all that specialise() reads
    kernel = _specialised.get(key)
    if kernel is None:
        if len(_specialised) >= MEMO_LIMIT:
            _specialised.clear()
        kernel = _specialised[key] = specialise(family, inputs, operands, config)
    enqueue(kernel, operands)


def enqueue(kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
    """Launch ``kernel`` where its tensors lie; the first is there. Raises UnavailableError as :func:`run` does."""
    assert tensors[0] is not None
    device = tensors[0].device
    if device.type == "cpu":
        from faops.backends.cuda_raw import emulator

        emulator.launch(kernel, tensors, known(emulated_card() or "a100").arch)
        return
    from faops.backends.cuda_raw.launch import launch

    try:
        launch(kernel, tensors)
    except (CompileError, ImportError, UnavailableError) as error:
        reason = f"{type(error).__name__}: {error}"
        _broken[detect(device).name] = reason
        raise UnavailableError(reason) from error
