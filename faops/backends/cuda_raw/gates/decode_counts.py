"""Gates on what the KV-cache kernels do to memory, as the emulator counts it: bank conflicts and bytes moved."""

from __future__ import annotations

from dataclasses import replace

from faops.architectures import cuda_number
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.emulator.counters import SECTOR_BYTES, Counters, GlobalSite
from faops.backends.cuda_raw.gates.code import VECTOR
from faops.backends.cuda_raw.gates.counts import TOLERANCE
from faops.backends.cuda_raw.gates.decode_cases import BATCH, HEADS, HEADS_KV, KEYS, SPLITS, DecodeCase
from faops.backends.cuda_raw.gates.result import Findings, GateResult
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.tiles import ELEMENT

FLOAT = 4  # bytes
ATTENTION, APPEND, COMBINE = "attention_decode", "decode_append", "decode_combine"
# Where each kernel reads and writes what it is there for; the rest are lengths, page numbers and angles.
READS = {ATTENTION: ("copy_async.cuh", "chunk.cuh"), APPEND: ("chunk.cuh",), COMBINE: ("decode_combine.cu",)}
WRITES = {ATTENTION: ("decode_result.cuh",), APPEND: ("chunk.cuh",), COMBINE: ("decode_combine.cu",)}


def check_decode_counts(case: DecodeCase, kernel: Specialised | None = None) -> GateResult:
    """Run the call in the emulator and check its counts; the source of ``kernel`` takes the place of the one with its
    entry. Raises EmulatorError where the emulator finds a fault or does not run.
    """
    findings = Findings()
    arch = f"sm_{cuda_number(case.target.name)}"
    wavefronts = conflicts = 0
    for own, tensors in case.launches():
        entry = own.source.entry
        if kernel is not None and kernel.source.entry == entry:
            own = replace(own, source=kernel.source)
        counters = emulator.launch(own, tensors, arch, "counters").counters
        assert counters is not None
        wavefronts += sum(site.wavefronts for site in counters.shared)
        conflicts += _check_banks(findings, counters)
        _check_bytes(findings, entry, counters, case)
    findings.figures.update(wavefronts=wavefronts, conflicts=conflicts)
    return findings.result(case)


def _check_banks(findings: Findings, counters: Counters) -> int:
    for site in counters.shared:
        findings.require(
            site.conflicts == 0,
            f"{site.function} at {site.file}:{site.line} takes {site.wavefronts} wavefronts, {site.ideal} without "
            "bank conflicts",
        )
    return sum(site.conflicts for site in counters.shared)


def least_bytes(case: DecodeCase) -> dict[str, tuple[int, int]]:
    """The least that each kernel can load and store; for combine without logarithms, which it reads more than once.

    Attention reads keys and values once for each tile of rows that sees them, and the queries in every split. What
    turns by halves is read once more, as the partner of the other half; it lies in the first-level cache by then.
    """
    tile_m, tile_n = case.config.integer("tile_m"), case.config.integer("tile_n")
    group = HEADS // HEADS_KV
    key = 2 * case.head_dim * ELEMENT  # and its value
    visible = 0
    for first in range(0, case.rows * group, tile_m):
        last = min((first + tile_m - 1) // group, case.rows - 1)  # position of the tile's last row
        seen = KEYS - case.rows + last + 1
        visible += min(KEYS, -(-seen // tile_n) * tile_n)
    rows = BATCH * case.rows * HEADS
    queries = 2 * SPLITS * rows * case.head_dim * ELEMENT
    partial = SPLITS * rows * case.head_dim * FLOAT
    new = BATCH * case.rows * HEADS_KV * key
    logs, lse = SPLITS * rows * FLOAT, rows * FLOAT
    return {
        APPEND: (3 * new // 2, new),
        ATTENTION: (BATCH * HEADS_KV * visible * key + queries, partial + logs),
        COMBINE: (partial, rows * case.head_dim * ELEMENT + lse),
    }


def _check_bytes(findings: Findings, entry: str, counters: Counters, case: DecodeCase) -> None:
    for name, kinds, files, least in (
        ("loaded", ("load", "copy"), READS[entry], least_bytes(case)[entry][0]),
        ("stored", ("store",), WRITES[entry], least_bytes(case)[entry][1]),
    ):
        sites = [site for site in counters.device if site.kind in kinds and site.file in files]
        if entry == COMBINE and name == "loaded":
            sites = [site for site in sites if site.access_bytes == VECTOR]
        moved = sum(_moved(site) for site in sites)
        if entry == ATTENTION:
            findings.figures[name] = moved / least
        allowed = (1 + TOLERANCE) * least
        findings.require(
            (1 - TOLERANCE) * least <= moved <= allowed,
            f"{entry}: {moved} bytes {name} where {least} are the least: {moved / least:.3f} times as many",
        )


def _moved(site: GlobalSite) -> int:
    """Bytes that the accesses of one call cost: whole sectors for copies, and what the lanes ask for elsewhere, where
    many share a sector.
    """
    sectors = site.sectors * SECTOR_BYTES
    return sectors if site.kind == "copy" or site.access_bytes == VECTOR else min(sectors, site.bytes)
