"""Compiling what a problem will need, before there are tensors for it and whether or not there is a card.

Triton keeps what it compiles on disk under a name made from the source, the specialisation, the target and the
options. All of these are here what they are at a launch on such a card, so a later launch should find the files; on a
card that was not verified.
"""

from __future__ import annotations

from faops.backends.triton import backward, decode, forward
from faops.backends.triton.compile import Binary, compile_launch
from faops.backends.triton.launch import Launch, Tensors
from faops.device import DeviceProfile
from faops.footprint import Resources
from faops.hollow import hollow_inputs
from faops.inputs import AttentionInputs, BackwardInputs
from faops.problem import AttentionProblem
from faops.registry import Config

# Those that multiply most: the kernel of a call whose registers and shared memory decide.
HEAVIEST = ("forward.attention_forward", "backward.attention_dkv", "decode.attention_decode")


def launches(problem: AttentionProblem, device: DeviceProfile, config: Config) -> list[tuple[Launch, Tensors]]:
    """Every launch of a call of ``problem`` with contiguous tensors, which hold nothing."""
    inputs = hollow_inputs(problem)
    if isinstance(inputs, AttentionInputs):
        return forward.launches(inputs, config)
    if isinstance(inputs, BackwardInputs):
        return backward.launches(inputs, config)
    return decode.launches(inputs, config, device)


def compile(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources:
    """Compile every launch of a call for an NVIDIA ``device``, one thread at a time.

    Returns registers and shared memory of the kernel that multiplies most, and the spills of the one that spills most.
    Raises UnavailableError without Triton or where it interprets, and CompileError.
    """
    made = [(launch.kernel, compile_launch(launch, tensors, device.arch)) for launch, tensors in launches(
        problem, device, config
    )]  # fmt: skip
    spilled = max((binary.spill_bytes for _, binary in made), default=0)
    heaviest: Binary | None = next((binary for kernel, binary in made if kernel in HEAVIEST), None)
    if heaviest is None:  # an empty call
        return Resources(0, spilled, 0)
    return Resources(heaviest.registers, spilled, heaviest.shared_bytes, heaviest.threads)
