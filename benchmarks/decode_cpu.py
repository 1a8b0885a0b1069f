"""Decoding over a KV cache on a CPU: one new row a sequence, against SDPA.

    python -m benchmarks.decode_cpu                    everything
    python -m benchmarks.decode_cpu --quick            a look in about a minute; the result goes to build/benchmarks
    python -m benchmarks.decode_cpu --models smollm2 --dtypes float32 --kinds paged

Three kinds of cache. In a ``dense`` one all sequences have the same length, which is all that SDPA takes in one call:
``sdpa`` is that call with enable_gqa, ``sdpa_rows`` one that has the query heads of a group as rows, as one would write
it to have keys read once. Sequences of a ``ragged`` one have between half of the keys and all; ``sdpa_each`` is
``sdpa_rows`` once a sequence. In a ``paged`` one they lie on pages in any order as well; ``gather_each`` indexes the
pages of a sequence before. ``read`` adds up the bytes of the keys and values: the floor of what reading them takes.

faops runs with its shipped defaults, through the public call with all its checks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import faops
from benchmarks import record
from benchmarks.harness import Effort, batch_of, interleave, speedup, summary, verdict

NAME = "decode_cpu"

MODELS = {"smollm2": (9, 3, 64), "llama8b": (32, 8, 128)}  # query heads, key and value heads, head dim
BATCHES = (1, 4, 16)
KEYS = (128, 1024, 4096)
DTYPES = ("float32", "bfloat16")
KINDS = ("dense", "ragged", "paged")
PAGE_SIZE = 16
LARGEST = 2**28  # bytes of a call's keys and values

BARS = {"sdpa": 1.0, "gather_each": 1.0}
SAMPLE_SECONDS = 2e-3  # a sample makes as many calls as take that long
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # largest difference, as a part of the largest value

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    kind: str
    model: str
    batch: int
    keys: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Of the keys and values of all sequences at their longest."""
        _, heads_kv, dim = MODELS[self.model]
        itemsize: int = getattr(torch, self.dtype).itemsize
        return 2 * self.batch * self.keys * heads_kv * dim * itemsize


class Inputs:
    """Random tensors of a case; ``table`` is None where nothing is paged."""

    def __init__(self, case: Case) -> None:
        heads, heads_kv, dim = MODELS[case.model]
        dtype = getattr(torch, case.dtype)
        torch.manual_seed(0)
        lengths = [case.keys] * case.batch
        if case.kind != "dense":
            lengths = [case.keys - case.keys * index // (2 * case.batch) for index in range(case.batch)]
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.q = torch.randn(case.batch, 1, heads, dim).to(dtype)
        leading, self.table = (case.batch, case.keys), None
        if case.kind == "paged":
            pages = case.keys // PAGE_SIZE
            leading = (case.batch * pages, PAGE_SIZE)
            self.table = torch.randperm(case.batch * pages).view(case.batch, pages).int()
        self.k_cache, self.v_cache = (torch.randn(*leading, heads_kv, dim).to(dtype) for _ in range(2))


def calls(case: Case) -> dict[str, Call]:
    """What is compared, by name; all but ``read`` return out (B, 1, H, D)."""
    it = Inputs(case)
    found: dict[str, Call] = {
        "faops": lambda: faops.attention_with_kvcache(
            it.q, it.k_cache, it.v_cache, cache_seqlens=it.lengths, block_table=it.table, causal=True
        )
    }
    if case.kind == "dense":
        found["sdpa"] = lambda: F.scaled_dot_product_attention(
            it.q.transpose(1, 2), it.k_cache.transpose(1, 2), it.v_cache.transpose(1, 2), enable_gqa=True
        ).transpose(1, 2)
        found["sdpa_rows"] = lambda: rows_of_groups(it.q, it.k_cache, it.v_cache)
        found["read"] = lambda: it.k_cache.view(torch.float32).sum() + it.v_cache.view(torch.float32).sum()
    elif case.kind == "ragged":
        found["sdpa_each"] = lambda: torch.cat(
            [
                rows_of_groups(it.q[b : b + 1], it.k_cache[b : b + 1, :length], it.v_cache[b : b + 1, :length])
                for b, length in enumerate(it.lengths.tolist())
            ]
        )
    else:
        found["gather_each"] = lambda: gather_each(it)
    return found


def rows_of_groups(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA with the query heads of a group as rows of their key and value head."""
    batch, _, heads, dim = q.shape
    packed = q.view(batch, k.shape[2], -1, dim)
    return F.scaled_dot_product_attention(packed, k.transpose(1, 2), v.transpose(1, 2)).reshape(batch, 1, heads, dim)


def gather_each(it: Inputs) -> Tensor:
    """The pages of one sequence after the other put side by side, and SDPA for each."""
    assert it.table is not None
    outs = []
    for b, length in enumerate(it.lengths.tolist()):
        pages = it.table[b, : -(-length // PAGE_SIZE)].long()
        k, v = (cache[pages].flatten(0, 1)[None, :length] for cache in (it.k_cache, it.v_cache))
        outs.append(rows_of_groups(it.q[b : b + 1], k, v))
    return torch.cat(outs)


def measure_case(case: Case, seconds: float) -> dict[str, Any]:
    """Agreement, times and ratios of one case."""
    contenders = calls(case)
    expected = contenders["faops"]().float()
    differences = {}
    for name, call in contenders.items():
        if name not in ("faops", "read"):
            differences[name] = ((call().float() - expected).abs().max() / expected.abs().max()).item()
    rounds = {name: batch_of(call, calls_of_a_sample(call)) for name, call in contenders.items()}
    samples = {name: found["call"] for name, found in interleave(rounds, Effort(seconds, min_rounds=5)).items()}
    ratios: dict[str, Any] = {}
    for name in contenders:
        if name == "faops":
            continue
        ratios[name] = speedup(samples["faops"], samples[name])
        if name in BARS:
            ratios[name] |= {"bar": BARS[name], "verdict": verdict(ratios[name], BARS[name])}
    return {
        "case": asdict(case),
        "bytes": case.bytes,
        "difference": differences,
        "agrees": all(value <= TOLERANCE[case.dtype] for value in differences.values()),
        "calls": {name: summary(values) for name, values in samples.items()},
        "ratios": ratios,
    }


def calls_of_a_sample(call: Call) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, round(SAMPLE_SECONDS / max(1e-7, time.perf_counter() - start)))


def select(options: argparse.Namespace) -> list[Case]:
    """The cases that are asked for and whose keys and values are not too large."""
    found = [
        Case(kind, model, batch, keys, dtype)
        for kind in options.kinds
        for model in options.models
        for dtype in options.dtypes
        for batch in options.batches
        for keys in options.keys
    ]
    return [case for case in found if case.bytes <= LARGEST]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    os.environ["FAOPS_TUNING"] = "0"
    result = record.header(NAME, models=MODELS, page_size=PAGE_SIZE, seconds=options.seconds)
    result["cases"] = []
    print(f"{torch.get_num_threads()} threads; µs a call, and ratios: above 1 faops is faster")
    for case in select(options):
        found = measure_case(case, options.seconds)
        result["cases"].append(found)
        print(_line(found), flush=True)
        path = record.write(result, quick=not options.complete)
    print(f"\n{path}")
    return 0


def table(result: dict[str, Any], *words: str) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of one kind of cache: µs a call and how many times as fast as each peer faops is."""
    (kind,) = words
    cases = [found for found in result["cases"] if found["case"]["kind"] == kind]
    peers = list(dict.fromkeys(name for found in cases for name in found["ratios"]))
    rows = []
    for found in cases:
        case = found["case"]
        cells = [f"{found['ratios'][name]['of_pairs']:.2f}" for name in peers]
        below = [found["ratios"][name].get("verdict") == "below" for name in peers]
        cells = [f"**{cell}**" if is_below else cell for cell, is_below in zip(cells, below)]
        median = f"{found['calls']['faops']['median'] * 1e6:,.0f}"
        rows.append([case["model"], case["dtype"], str(case["batch"]), f"{case['keys']:,}", median, *cells])
    return ["model", "dtype", "batch", "keys", "µs a call", *peers], rows


def _line(found: dict[str, Any]) -> str:
    case = found["case"]
    times = "  ".join(f"{name} {values['median'] * 1e6:,.0f}" for name, values in found["calls"].items())
    ratios = "  ".join(f"{name} {values['of_pairs']:.2f}" for name, values in found["ratios"].items())
    name = f"{case['kind']} {case['model']} {case['dtype']} batch {case['batch']} keys {case['keys']}"
    return f"{name:48} {times:60} {ratios}{'' if found['agrees'] else '  RESULTS DIFFER'}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode_cpu", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=list(DTYPES))
    parser.add_argument("--batches", type=_numbers, default=list(BATCHES))
    parser.add_argument("--keys", type=_numbers, default=list(KEYS))
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring a case")
    parser.add_argument("--quick", action="store_true", help="small caches and little time")
    options = parser.parse_args(arguments)
    if options.quick:
        options.batches, options.keys = [1, 4], [128, 1024]
        options.seconds = min(options.seconds, 0.3)
    everything = (list(KINDS), list(MODELS), list(DTYPES), list(BATCHES), list(KEYS))
    chosen = (options.kinds, options.models, options.dtypes, options.batches, options.keys)
    options.complete = chosen == everything and not options.quick
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
