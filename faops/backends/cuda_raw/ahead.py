"""Compiling what a problem will need, before there are tensors for it and whether or not there is a card."""

from __future__ import annotations

from faops.backends.cuda_raw import cubin_cache, decode, nvrtc
from faops.backends.cuda_raw.decode_specialize import ENTRY
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.backends.cuda_raw.tiles import Family
from faops.device import DeviceProfile
from faops.errors import UnavailableError
from faops.footprint import Resources
from faops.hollow import hollow_inputs
from faops.inputs import AttentionInputs, DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands
from faops.problem import AttentionProblem
from faops.registry import Config


def specialised(family: Family, problem: AttentionProblem, config: Config) -> Specialised:
    """The kernel of a call of ``problem`` with contiguous tensors."""
    inputs = hollow_inputs(problem)
    assert isinstance(inputs, AttentionInputs)
    out = empty_out(inputs.q, inputs.v.shape[-1])
    lse = empty_lse(inputs.q) if inputs.need_lse else None
    return specialise(family, inputs, Operands.of(inputs, out, lse), config)


def compile(family: Family, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
    """Compile into the cache of cubins for an NVIDIA ``device``; what the kernel takes.

    None where the compiler does not tell, because the driver will compile once more. Raises UnavailableError without
    NVRTC, and CompileError.
    """
    if reason := nvrtc.probe():
        raise UnavailableError(reason)
    kernel = specialised(family, problem, config)
    compiled = cubin_cache.compile_cached(kernel.source, nvrtc.target_of(device.arch))
    return _resources(kernel, compiled)


def compile_decode(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
    """The same for every launch of a KV-cache call. Registers and shared memory are those of the attention."""
    if reason := nvrtc.probe():
        raise UnavailableError(reason)
    inputs = hollow_inputs(problem)
    assert isinstance(inputs, DecodeInputs)
    _, _, steps = decode.launches(inputs, config, device)
    found = None
    for kernel, _ in steps:
        compiled = cubin_cache.compile_cached(kernel.source, nvrtc.target_of(device.arch))
        if kernel.source.entry == ENTRY:
            found = _resources(kernel, compiled)
    return found


def _resources(kernel: Specialised, compiled: Compiled) -> Resources | None:
    if compiled.registers is None:
        return None
    spilled = max(compiled.spill_store_bytes or 0, compiled.spill_load_bytes or 0)
    return Resources(compiled.registers, spilled, kernel.shared_bytes + (compiled.static_shared_bytes or 0))
