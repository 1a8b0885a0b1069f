"""Gates on the machine code of the KV-cache kernels: append, attention and combine."""

from __future__ import annotations

from faops.backends.cuda_raw import cubin_cache
from faops.backends.cuda_raw.decode_tiles import warp_rows
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.gates.cases import device_of
from faops.backends.cuda_raw.gates.code import VECTOR, matrix_opcode_of
from faops.backends.cuda_raw.gates.decode_cases import DecodeCase
from faops.backends.cuda_raw.gates.result import Findings, GateResult
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.tiles import MATRIX_ROWS, padded
from faops.errors import CompileError
from faops.occupancy import blocks_per_unit

NUMBER = 4  # bytes of a length, a page number, a logarithm
PAIR = 8  # bytes of four elements
# Accesses of device memory by their bytes a thread: all that there may be, and one that there must be. Angles of a
# rotation are read 16 bytes at a time as well.
WIDTHS = {
    "decode_append": {"LDG": {NUMBER, VECTOR}, "STG": {VECTOR}},
    "decode_combine": {"LDG": {NUMBER, VECTOR}, "STG": {NUMBER, PAIR}},
    "attention_decode": {"LDG": {NUMBER, VECTOR}, "STG": {NUMBER, VECTOR}},
}


def check_decode_code(case: DecodeCase, kernel: Specialised | None = None) -> GateResult:
    """Compile, disassemble and check what the case launches; ``kernel`` takes the place of the one with its entry.

    Raises UnavailableError without a disassembler.
    """
    findings = Findings()
    for own, _ in case.launches():
        launched = kernel if kernel is not None and kernel.source.entry == own.source.entry else own
        entry = launched.source.entry
        try:
            compiled = cubin_cache.compile_cached(launched.source, case.target)
        except CompileError as error:
            findings.failures.append(str(error))
            continue
        function = sass.disassemble(compiled.image)[entry]
        _check_memory(findings, entry, compiled, function)
        if entry == "attention_decode":
            findings.figures.update(registers=compiled.registers or 0)
            _check_resources(findings, case, compiled, launched)
            _check_products(findings, case, function)
            _check_copies(findings, case, function)
        if entry == "decode_append":
            fused = function.count("FFMA")
            findings.require(fused == 0, f"{entry}: {fused} FFMA, but keys turn by products rounded apart")
    return findings.result(case)


def _check_memory(findings: Findings, entry: str, compiled: Compiled, function: sass.Function) -> None:
    spilled = (compiled.spill_store_bytes or 0) + (compiled.spill_load_bytes or 0)
    local = function.count("LDL") + function.count("STL")
    for name, value in (("spill_bytes", spilled), ("local", local)):
        findings.figures[name] = findings.figures.get(name, 0) + value
    findings.require(spilled == local == 0, f"{entry}: {spilled} bytes of spills, {local} LDL and STL instructions")
    for base, allowed in WIDTHS[entry].items():
        widths = function.widths(base)
        for width, count in sorted(widths.items()):
            findings.require(width in allowed, f"{entry}: {count} {base} of {width} bytes: {sorted(allowed)} expected")
        findings.require(widths[max(allowed)] > 0, f"{entry}: no {base} of {max(allowed)} bytes")
    for base in ("LD", "ST", "ATOM"):
        found = function.count(base)
        findings.require(found == 0, f"{entry}: {found} {base} to an unknown kind of memory")


def _check_resources(findings: Findings, case: DecodeCase, compiled: Compiled, kernel: Specialised) -> None:
    shared = kernel.shared_bytes + (compiled.static_shared_bytes or 0)
    arch = device_of(case.target).arch
    blocks = blocks_per_unit(arch, compiled.registers or 255, shared, kernel.source.threads)
    findings.figures.update(shared_bytes=shared, blocks=blocks)
    findings.require(blocks >= 1, f"no block fits a multiprocessor: {compiled.registers} registers, {shared} bytes")


def _check_products(findings: Findings, case: DecodeCase, function: sass.Function) -> None:
    family = case.family
    wanted = matrix_opcode_of(family.mma_depth, case.dtype)
    kinds = sorted(opcode for opcode in function.opcodes() if opcode.startswith("HMMA"))
    findings.require(kinds == [wanted], f"matrix instructions {', '.join(kinds) or 'none'}, expected {wanted}")
    loop = function.loop_with("HMMA")
    findings.require(loop is not None, "no matrix instruction stands in a loop")
    if loop is None:
        return
    width = padded(case.head_dim)
    row_blocks = warp_rows(case.config) // MATRIX_ROWS
    keys = case.config.integer("tile_n") // case.config.integer("key_warps")
    products = row_blocks * (keys // 8) * (width // family.mma_depth) * 2
    fragments = 2 * (keys // 16) * (width // 16)
    found = {"products": function.count("HMMA", loop), "fragments": function.count("LDSM", loop)}
    findings.figures.update(found)
    findings.require(found["products"] == products, f"{found['products']} HMMA in the loop, {products} expected")
    queries = row_blocks * (width // 16)  # where they do not stay in registers
    findings.require(
        found["fragments"] in (fragments, fragments + queries),
        f"{found['fragments']} LDSM in the loop, {fragments} expected, or {queries} more for the queries",
    )


def _check_copies(findings: Findings, case: DecodeCase, function: sass.Function) -> None:
    asynchronous = case.family.asynchronous
    base = "LDGSTS" if asynchronous else "LDG"
    loop = function.loop_with("HMMA")
    widths = function.widths(base, loop)
    findings.figures["copies"] = widths[VECTOR]
    findings.require(widths[VECTOR] > 0, f"no {base} of {VECTOR} bytes in the loop over keys")
    if asynchronous:
        narrow = sum(count for width, count in function.widths(base).items() if width != VECTOR)
        findings.require(narrow == 0, f"{narrow} {base} of fewer than {VECTOR} bytes")
        cached = [op for op in function.opcodes() if op.startswith(base) and "BYPASS" not in op]
        findings.require(not cached, f"{', '.join(cached)}: copies go through the first-level cache")
