"""Gates on compiled code: spills, shared memory, tensor-core instructions and asynchronous copies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from faops.architectures import cuda_number
from faops.backends.triton.compile import Binary, compile_launch
from faops.backends.triton.gates.cases import Case
from faops.backends.triton.launch import Launch, Tensors
from faops.errors import FaopsError

# What a thread may keep in memory in configs that are no default: 64 registers. The largest tiles lack up to fifty and
# may be the fastest all the same, which the tuner measures; what lacks more lacks hundreds.
MARGIN_SPILL_BYTES = 256
# Rows and columns that the warp groups of Hopper and the tensor memory of Blackwell multiply at least; smaller tiles
# go through the instruction of Ampere.
GROUP_ROWS = 64
GROUP_WARPS = 4
WIDEST_COPY = 16  # bytes a thread

AMPERE, HOPPER, BLACKWELL = "mma.sync", "wgmma.mma_async", "tcgen05.mma"
INSTRUCTIONS: dict[str, re.Pattern[str]] = {
    AMPERE: re.compile(r"\bmma\.sync\."),
    HOPPER: re.compile(r"\bwgmma\.mma_async\."),
    BLACKWELL: re.compile(r"\btcgen05\.mma\."),
}
_SCALAR = re.compile(r"\bfma\.rn\.f32\b")
# cp.async.cg.shared.global [ %r5 + 0 ], [ %rd7 + 0 ], 0x10, %r9;
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\],\s*(0x[0-9a-f]+|\d+)\s*[,;]")


@dataclass(frozen=True)
class GateResult:
    """What was found of one launch of a case. ``failures`` has a sentence for each gate it does not pass."""

    case: Case
    kernel: str  # module and function; "" where none was reached
    figures: dict[str, int | float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


def check_case(case: Case) -> list[GateResult]:
    """All gates of every launch of a case. What keeps a kernel from being compiled is a failure."""
    try:
        launches = case.launches()
    except FaopsError as error:
        return [GateResult(case, "", failures=(str(error),))]
    return [check_launch(case, launch, tensors) for launch, tensors in launches]


def check_launch(case: Case, launch: Launch, tensors: Tensors) -> GateResult:
    """Compile one launch and check its code."""
    try:
        binary = compile_launch(launch, tensors, case.arch)
    except FaopsError as error:
        return GateResult(case, launch.kernel, failures=(str(error),))
    return check_binary(case, launch, binary)


def check_binary(case: Case, launch: Launch, binary: Binary) -> GateResult:
    """Check what was compiled."""
    found = {name: len(pattern.findall(binary.ptx)) for name, pattern in INSTRUCTIONS.items()}
    copies = [int(size, 0) for size in _COPY.findall(binary.ptx)]
    figures: dict[str, int | float] = {
        "registers": binary.registers,
        "threads": binary.threads,
        "spill_bytes": binary.spill_bytes,
        "shared_bytes": binary.shared_bytes,
        **found,
        "fma": len(_SCALAR.findall(binary.ptx)),
        "copies": len(copies),
        "seconds": round(binary.seconds, 2),
    }
    failures = [
        *_spills(case, binary),
        *_shared(case, binary),
        *(_products(case, launch, found, int(figures["fma"])) if multiplies(launch) else ()),
        *_copies(launch, copies),
    ]
    return GateResult(case, launch.kernel, figures, tuple(failures))


def multiplies(launch: Launch) -> bool:
    """Whether the kernel multiplies matrices: those that do have tiles of rows and of keys, and a precision."""
    return "PRECISION" in launch.constants


def expected_instruction(arch: str, launch: Launch) -> str:
    """The matrix instruction of the architecture that tiles of this size can use."""
    number = cuda_number(arch)
    rows = min(int(launch.constants[name] or 0) for name in ("BLOCK_M", "BLOCK_N"))
    grouped = rows >= GROUP_ROWS and launch.options["num_warps"] >= GROUP_WARPS
    if 90 <= number < 100 and grouped:
        return HOPPER
    if 100 <= number < 110 and grouped:
        return BLACKWELL
    return AMPERE


def _spills(case: Case, binary: Binary) -> list[str]:
    allowed = 0 if case.is_default else MARGIN_SPILL_BYTES
    if binary.spill_bytes <= allowed:
        return []
    return [f"a thread spills {binary.spill_bytes} bytes, {allowed} allowed; it has {binary.registers} registers"]


def _shared(case: Case, binary: Binary) -> list[str]:
    limit = case.device.limits.shared_per_block
    if binary.shared_bytes <= limit:
        return []
    return [f"a block takes {binary.shared_bytes} bytes of shared memory, {case.arch} has {limit}"]


def _products(case: Case, launch: Launch, found: dict[str, int], scalar: int) -> list[str]:
    exact = case.dtype == "float32" and launch.constants["PRECISION"] == "ieee"
    if exact:
        if any(found.values()) or not scalar:
            return [f"exact float32 products take fma, found {scalar} of them and {found} of the matrix instructions"]
        return []
    instruction = expected_instruction(case.arch, launch)
    if not any(found.values()):
        return [f"no matrix instruction, {instruction} expected"]
    if instruction != AMPERE and not found[instruction]:
        return [f"no {instruction}, which the tiles have room for, but {found}"]
    return []


def _copies(launch: Launch, copies: list[int]) -> list[str]:
    """Keys and values come sixteen bytes at a time while others are computed with."""
    if not multiplies(launch) or launch.options["num_stages"] <= 1:
        return []
    wide = WIDEST_COPY * copies.count(WIDEST_COPY)
    if 2 * wide > sum(copies):
        return []
    return [
        f"of {sum(copies)} bytes that the code's asynchronous copies bring a thread {wide} come {WIDEST_COPY} at a time"
    ]
