"""Device memory that a forward call moves, counted by the emulator, beside attention that keeps its score matrix.

    python -m benchmarks.traffic                 4096 tokens, batch 4, 32 heads; some minutes
    python -m benchmarks.traffic --seqlen 512    quicker; the result goes to build/benchmarks

One head of one batch entry runs in the emulator, which counts every byte that a lane asks device memory for. All heads
do the same, so the call's bytes are that number times batch and heads. Part of what is read several times comes from
the L2 cache of a real device; the least that its memory moves is each operand once. Unfused attention writes and reads
the score matrix: once as scores and once as probabilities, in the dtype that the scores are kept in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import record
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.sm75_forward import Sm75Forward
from faops.backends.cuda_raw.sm80_forward import Sm80Forward
from faops.backends.cuda_raw.specialize import specialise
from faops.device import known
from faops.inputs import AttentionInputs
from faops.operands import Operands
from faops.problem import AttentionProblem, Band

NAME = "traffic"
FOLDER = "emulated"
SEQLEN, BATCH, HEADS = 4096, 4, 32
CARDS: tuple[tuple[str, type[RawForward]], ...] = (("t4", Sm75Forward), ("a100", Sm80Forward))
ELEMENT = 2  # bytes of float16
SCORE_PASSES = 4  # over the score matrix: scores written and read, probabilities written and read


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seqlen", type=int, default=SEQLEN, help=f"tokens (default {SEQLEN})")
    options = parser.parse_args(arguments)
    if reason := emulator.missing():
        print(reason, file=sys.stderr)
        return 2
    result = record.header(NAME, seqlen=options.seqlen, batch=BATCH, heads=HEADS)
    result["device"]["folder"] = FOLDER
    result["cases"] = []
    print(f"{options.seqlen} tokens, batch {BATCH}, {HEADS} heads, float16; GB = 1e9 bytes")
    print(f"{'card':5} {'d':>3} {'causal':>6}  {'faops':>8} {'least':>8}  {'unfused f16':>11} {'unfused f32':>11}")
    for card, kind in CARDS:
        for head_dim in (64, 128):
            for causal in (False, True):
                case = measure(card, kind(), head_dim, causal, options.seqlen)
                result["cases"].append(case)
                print(_line(case), flush=True)
    print(record.write(result, quick=options.seqlen != SEQLEN))
    return 0


def measure(card: str, kernel: RawForward, head_dim: int, causal: bool, seqlen: int) -> dict[str, Any]:
    """Counts for one head, and for the whole call."""
    profile = known(card)
    band = Band(right=0 if causal else -1)
    problem = AttentionProblem(
        batch=BATCH, seqlen_q=seqlen, seqlen_k=seqlen, heads_q=HEADS, heads_kv=HEADS, head_dim=head_dim,
        head_dim_v=head_dim, band=band,
    )  # fmt: skip
    config = kernel.default_config(problem, profile)
    inputs, operands = _one_head(seqlen, head_dim, band)
    launched = specialise(kernel.family, inputs, operands, config)
    counted = emulator.launch(launched, operands, profile.arch, "counters").counters
    assert counted is not None
    times = BATCH * HEADS
    scores = times * seqlen * seqlen
    operand_bytes = times * 4 * seqlen * head_dim * ELEMENT
    return {
        "card": card,
        "kernel": kernel.id,
        "config": dict(config),
        "head_dim": head_dim,
        "causal": causal,
        "loaded": times * counted.bytes_loaded,
        "stored": times * counted.bytes_stored,
        "sector_bytes": times * (counted.sector_bytes_loaded + counted.sector_bytes_stored),
        "least": problem.bytes_moved(),
        "unfused_float16": operand_bytes + SCORE_PASSES * scores * 2,
        "unfused_float32": operand_bytes + SCORE_PASSES * scores * 4,
        "shared_wavefronts": times * sum(site.wavefronts for site in counted.shared),
        "bank_conflicts": times * counted.conflicts,
        "matrix_instructions": {kind: times * count for kind, count in counted.matrix.items() if count},
        "matrix_flops": times * counted.matrix_flops,
        "useful_flops": problem.flops(),
    }


def _one_head(seqlen: int, head_dim: int, band: Band) -> tuple[AttentionInputs, Operands]:
    q, k, v = (torch.randn(1, seqlen, 1, head_dim, dtype=torch.float16) for _ in range(3))
    inputs = AttentionInputs(
        q, k, v, None, None, None, None, None, None, None, seqlen, seqlen, band.left, band.right, head_dim**-0.5,
        0.0, 0.0, False, False, "",
    )  # fmt: skip
    return inputs, Operands.of(inputs, torch.empty_like(q), None)


def _line(case: dict[str, Any]) -> str:
    figures = ((case["loaded"] + case["stored"]), case["least"], case["unfused_float16"], case["unfused_float32"])
    moved, least, half, single = (f"{figure / 1e9:.2f}" for figure in figures)
    causal = "yes" if case["causal"] else "no"
    return f"{case['card']:5} {case['head_dim']:3} {causal:>6}  {moved:>8} {least:>8}  {half:>11} {single:>11}"


if __name__ == "__main__":
    sys.exit(main())
