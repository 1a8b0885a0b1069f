"""Gates on machine code: registers, matrix instructions and the width of memory accesses."""

from __future__ import annotations

import torch

from faops.backends.cuda_raw import cubin_cache
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.gates.cases import Case
from faops.backends.cuda_raw.gates.result import Findings, GateResult
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import ENTRY
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.tiles import MATRIX_ROWS, matrix_registers, padded
from faops.errors import CompileError
from faops.occupancy import blocks_per_unit

VECTOR = 16  # bytes: the widest access of a thread, and what copies must use

# Narrow loads of device memory that a feature asks for, by bytes a thread; all others must be of 16.
NARROW_LOADS: dict[str, frozenset[int]] = {
    "alibi": frozenset({4}),
    "bias": frozenset({2, 4}),
    "mask": frozenset({1}),
    "sinks": frozenset({4}),
    "dropout": frozenset({4, 8}),
    "varlen": frozenset({4}),
}
LSE_BYTES = 4
# What a thread may spill in those configs of the tuning space that go above the family's limit of registers: they lack
# a few on some targets and may be the fastest all the same, which the tuner measures. Nothing else may spill.
MARGIN_SPILL_BYTES = 32
DEFAULT_WARPS = 8  # that a multiprocessor has room for with the default tiles up to head dim 128
# Zeros for the rows behind the last sequence are written one element at a time: there are few.
NARROW_STORES: dict[str, frozenset[int]] = {"varlen": frozenset({2})}


def check_code(case: Case, kernel: Specialised | None = None) -> GateResult:
    """Compile, disassemble and check; ``kernel`` takes the place of the case's own.

    Raises UnavailableError without a disassembler.
    """
    kernel = kernel or case.kernel()
    try:
        compiled = cubin_cache.compile_cached(kernel.source, case.target)
    except CompileError as error:
        return GateResult(case, {}, (str(error),))
    function = sass.disassemble(compiled.image)[ENTRY]
    findings = Findings()
    _check_spills(findings, case, compiled, function)
    _check_resources(findings, case, compiled, kernel)
    _check_products(findings, case, function)
    _check_accesses(findings, case, function)
    return findings.result(case)


# ---------------------------------------------------------------------------------------------- registers and memory


def _check_spills(findings: Findings, case: Case, compiled: Compiled, function: sass.Function) -> None:
    stores, loads = compiled.spill_store_bytes or 0, compiled.spill_load_bytes or 0
    local = {base: function.count(base) for base in ("LDL", "STL")}
    loop = function.loop_with("HMMA")
    inside = sum(function.count(base, loop) for base in local) if loop else 0
    findings.figures.update(registers=compiled.registers or 0, spill_bytes=stores + loads, local=sum(local.values()))
    held = matrix_registers(case.family, case.config, case.head_dim, case.head_dim)
    if case.is_default or held <= case.family.register_limit:
        holds = stores == loads == 0 and not any(local.values())
    else:
        holds = max(stores, loads) <= MARGIN_SPILL_BYTES
    findings.require(
        holds,
        f"{stores} bytes of spill stores and {loads} of loads; {local['LDL']} LDL and {local['STL']} STL instructions, "
        f"{inside} of them in the loop",
    )


def _check_resources(findings: Findings, case: Case, compiled: Compiled, kernel: Specialised) -> None:
    shared = kernel.shared_bytes + (compiled.static_shared_bytes or 0)
    blocks = blocks_per_unit(case.device.arch, compiled.registers or 255, shared, kernel.source.threads)
    wanted = wanted_blocks(case)
    findings.figures.update(shared_bytes=shared, blocks=blocks)
    findings.require(
        blocks >= wanted,
        f"{blocks} blocks fit a multiprocessor, {wanted} wanted: {compiled.registers} registers for "
        f"{kernel.source.threads} threads, {shared} bytes of shared memory",
    )


def wanted_blocks(case: Case) -> int:
    """Blocks a multiprocessor must have room for: one lets a kernel run, and the default tiles up to head dim 128 leave
    room for two, so that one block's products fill the other's waits.

    Eight warps do that as well, two for each of the four schedulers, and may come as one block.
    """
    if case.head_dim > 128 or not case.is_default:
        return 1
    return max(1, DEFAULT_WARPS // case.config.integer("warps"))


# ---------------------------------------------------------------------------------------------- products


def matrix_opcode(case: Case) -> str:
    """The matrix instruction that the kernel is written for."""
    return matrix_opcode_of(case.family.mma_depth, case.dtype)


def matrix_opcode_of(depth: int, dtype: torch.dtype) -> str:
    """The matrix instruction of that depth."""
    if depth == 8:
        return "HMMA.1688.F32"
    return "HMMA.16816.F32.BF16" if dtype == torch.bfloat16 else "HMMA.16816.F32"


def predicted_products(case: Case) -> int:
    """Matrix instructions of a warp for one block of keys: scores, then their product with the values."""
    tile_n, width = case.config.integer("tile_n"), padded(case.head_dim)
    row_blocks = _row_blocks(case)
    return row_blocks * (tile_n // 8) * (width // case.family.mma_depth) + row_blocks * (width // 8) * (
        tile_n // case.family.mma_depth
    )


def predicted_fragments(case: Case) -> int:
    """Instructions of a warp, for one block of keys, that load four 8 x 8 matrices each from shared memory."""
    tile_n, width = case.config.integer("tile_n"), padded(case.head_dim)
    keys_and_values = 2 * (tile_n // 16) * (width // 16)
    queries = 0 if case.config["q_in_registers"] else _row_blocks(case) * (width // 16)
    return keys_and_values + queries


def _row_blocks(case: Case) -> int:
    return case.config.integer("tile_m") // (case.config.integer("warps") * MATRIX_ROWS)


def _check_products(findings: Findings, case: Case, function: sass.Function) -> None:
    wanted = matrix_opcode(case)
    kinds = sorted(opcode for opcode in function.opcodes() if opcode.startswith("HMMA"))
    loop = function.loop_with("HMMA")
    findings.require(kinds == [wanted], f"matrix instructions {', '.join(kinds) or 'none'}, expected {wanted}")
    findings.require(loop is not None, "no matrix instruction stands in a loop")
    if loop is None:
        return
    for name, base, predicted in (
        ("products", "HMMA", predicted_products(case)),
        ("fragments", "LDSM", predicted_fragments(case)),
    ):
        found = function.count(base, loop)
        findings.figures[name] = found
        findings.require(found == predicted, f"{found} {base} in the loop over keys, {predicted} expected of the tile")


# ---------------------------------------------------------------------------------------------- memory accesses


def _check_accesses(findings: Findings, case: Case, function: sass.Function) -> None:
    loop = function.loop_with("HMMA")
    copies = "LDGSTS" if case.family.asynchronous else "LDG"
    findings.figures["copies"] = function.widths(copies, loop)[VECTOR]
    findings.figures["barriers"] = function.count("BAR", loop)
    narrow = NARROW_LOADS.get(case.feature, frozenset())
    findings.require(function.count(copies) > 0, f"no {copies}: nothing is copied from device memory")
    findings.require(findings.figures["copies"] > 0, f"no {copies} of {VECTOR} bytes in the loop over keys")
    expected = {
        "LDGSTS": {VECTOR},
        "LDG": {*narrow, *(() if case.family.asynchronous else (VECTOR,))},
        "STG": {VECTOR, LSE_BYTES, *NARROW_STORES.get(case.feature, ())},
        "STS": {4} if case.family.asynchronous else {4, VECTOR},
        "LDS": {VECTOR},
        "LDSM": {VECTOR},
    }
    for base, allowed in expected.items():
        for width, count in sorted(function.widths(base).items()):
            findings.require(width in allowed, f"{count} {base} of {width} bytes: {_widths(allowed)} expected")
    stores = function.widths("STG")
    findings.require(stores[VECTOR] > 0, f"the result is not stored {VECTOR} bytes at a time")
    rows = 2 * _row_blocks(case)  # of a lane, each with its lse
    spare = 1 if case.feature == "varlen" else 0
    findings.require(
        stores[LSE_BYTES] <= rows + spare * 8,
        f"{stores[LSE_BYTES]} STG of {LSE_BYTES} bytes, where the {rows} of lse are all that is asked for",
    )
    bypass = [opcode for opcode in function.opcodes() if opcode.startswith("LDGSTS") and "BYPASS" not in opcode]
    findings.require(not bypass, f"{', '.join(bypass)}: copies go through the first-level cache")
    for base in ("LD", "ST", "ATOM"):
        findings.require(function.count(base) == 0, f"{function.count(base)} {base} to an unknown kind of memory")


def _widths(allowed: set[int]) -> str:
    return " or ".join(map(str, sorted(allowed))) if allowed else "none"
