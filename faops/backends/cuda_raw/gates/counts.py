"""Gates on what a kernel does to memory, as the emulator counts it: bank conflicts and bytes moved."""

from __future__ import annotations

from dataclasses import replace

import torch

from faops.architectures import cuda_number
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.emulator.counters import SECTOR_BYTES, Counters, GlobalSite
from faops.backends.cuda_raw.gates.cases import Case
from faops.backends.cuda_raw.gates.code import predicted_products
from faops.backends.cuda_raw.gates.result import Findings, GateResult
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.backends.cuda_raw.tiles import ELEMENT
from faops.inputs import AttentionInputs

SEQLEN = 256  # rows and keys of the counted problem: several tiles of each, so that the band matters
HEADS = 2
TOLERANCE = 0.05  # of the bytes moved, against the least possible
LSE_BYTES = 4
MASK_BYTES = 1
MATRIX_FILES = ("copy_async.cuh", "copy_registers.cuh", "store.cuh")  # where Q, K, V and the result are moved


def check_counts(case: Case, kernel: Specialised | None = None) -> GateResult:
    """Run a small problem in the emulator and check its counts; ``kernel`` takes the place of the case's own source.

    Raises EmulatorError where the emulator finds a fault or does not run.
    """
    inputs, operands = case.call(SEQLEN, HEADS)
    own = specialise(case.family, inputs, operands, case.config)
    if kernel is not None:
        own = replace(own, source=kernel.source)
    report = emulator.launch(own, operands, f"sm_{cuda_number(case.target.name)}", "counters")
    assert report.counters is not None
    findings = Findings()
    _check_banks(findings, report.counters)
    visible = visible_blocks(inputs, case.config.integer("tile_m"), case.config.integer("tile_n"))
    _check_bytes(findings, case, report.counters, visible)
    _check_products(findings, case, report.counters, visible)
    return findings.result(case)


def visible_blocks(inputs: AttentionInputs, tile_m: int, tile_n: int) -> torch.Tensor:
    """(row tiles, key blocks), bool: whether some row of the tile sees some key of the block, from the definition.

    Row i sees key j where ``i + shift - left <= j <= i + shift + right``, -1 standing for no limit.
    """
    rows, keys = inputs.max_seqlen_q, inputs.max_seqlen_k
    distance = torch.arange(keys)[None, :] - (torch.arange(rows)[:, None] + keys - rows)
    seen = torch.ones(rows, keys, dtype=torch.bool)
    if inputs.window_left >= 0:
        seen &= distance >= -inputs.window_left
    if inputs.window_right >= 0:
        seen &= distance <= inputs.window_right
    assert rows % tile_m == 0 and keys % tile_n == 0
    return seen.view(rows // tile_m, tile_m, keys // tile_n, tile_n).any(3).any(1)


def _check_banks(findings: Findings, counters: Counters) -> None:
    wavefronts, ideal = (sum(getattr(site, name) for site in counters.shared) for name in ("wavefronts", "ideal"))
    findings.figures.update(wavefronts=wavefronts, conflicts=wavefronts - ideal)
    findings.require(ideal > 0, "no access of shared memory was counted")
    for site in counters.shared:
        findings.require(
            site.conflicts == 0,
            f"{site.function} at {site.file}:{site.line} takes {site.wavefronts} wavefronts, {site.ideal} without "
            "bank conflicts",
        )


def _check_bytes(findings: Findings, case: Case, counters: Counters, visible: torch.Tensor) -> None:
    blocks = int(visible.sum())
    matrix = SEQLEN * case.head_dim * ELEMENT  # bytes of one head of Q, or of the result
    block = case.config.integer("tile_n") * case.head_dim * ELEMENT
    pairs = blocks * case.config.integer("tile_m") * case.config.integer("tile_n")
    a_pair = {"bias": ELEMENT, "mask": MASK_BYTES}.get(case.feature, 0)
    for name, kinds, least in (
        ("loaded", ("load", "copy"), HEADS * (matrix + blocks * 2 * block + pairs * a_pair)),
        ("stored", ("store",), HEADS * (matrix + SEQLEN * LSE_BYTES)),
    ):
        moved = sum(_moved(site) for site in counters.device if site.kind in kinds)
        findings.figures[name] = moved / least
        findings.require(
            abs(moved / least - 1) <= TOLERANCE,
            f"{moved} bytes {name} where {least} are the least: {moved / least:.3f} times as many",
        )


def _moved(site: GlobalSite) -> int:
    """Bytes that the accesses of one call cost.

    For the matrices these are whole sectors. For the rest, which neighbouring requests or all lanes share, what the
    lanes ask for or the sectors they touch, whichever is less.
    """
    sectors = site.sectors * SECTOR_BYTES
    return sectors if site.file in MATRIX_FILES else min(sectors, site.bytes)


def _check_products(findings: Findings, case: Case, counters: Counters, visible: torch.Tensor) -> None:
    predicted = HEADS * int(visible.sum()) * case.config.integer("warps") * predicted_products(case)
    found = sum(counters.matrix.values())
    findings.figures["products_run"] = found
    findings.require(found == predicted, f"{found} matrix instructions were run, {predicted} expected of the tiles")
