"""Section "timing": forwards against PyTorch's kernels, every config against the default one, first calls, host time.

Rounds are interleaved and their samples kept, as in all benchmarks; a ratio above 1 means that faops is faster.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

import faops
from benchmarks.gpu import contenders
from benchmarks.gpu.attention import FAMILIES, Trial, prepare
from benchmarks.gpu.contenders import Call, Shape, agreeing, all_of, calls_for, direct, timed
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError, WrongError
from benchmarks.harness import Effort, interleave, speedup, summary
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.space import space
from faops.device import detect
from faops.problem import AttentionProblem, Band
from faops.registry import Config

OURS = ("sm80", "sm75", "faops")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEAD_DIMS = (128, 64, 256)
QUICK_LENGTHS = (1024, 4096)
QUICK_HEAD_DIMS = (128, 64)
CONFIG_LENGTH = 4096
# Of the norm of the truth, for 16-bit operands. bfloat16 keeps 8 bits of the probabilities too.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2}
EFFORT = Effort(2.0, min_rounds=20, max_rounds=200, warmup_rounds=3, limit=20.0)
QUICK_EFFORT = Effort(0.5, min_rounds=10, max_rounds=50, warmup_rounds=2, limit=5.0)
HOST_CALLS = 500


def items(options: Options) -> list[Item]:
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    head_dims = QUICK_HEAD_DIMS if options.quick else HEAD_DIMS
    shapes = [
        Shape(tokens, head_dim, causal, dtype)
        for dtype, head_dim, tokens, causal in itertools.product(
            ("bfloat16", "float16"), head_dims, reversed(lengths), (True, False)
        )
        # float16 is there for the Turing kernel; two lengths show it.
        if dtype == "bfloat16" or tokens in QUICK_LENGTHS
    ]
    tuned = [(name, dim) for dim in head_dims for name in FAMILIES]
    tried: list[tuple[str, Callable[[], dict[str, Any]]]] = [("first call", first_call), ("host time", host_time)]
    tried += [(str(shape), functools.partial(race, shape, options.quick)) for shape in shapes]
    tried += [
        (f"configs of {name} d{dim}", functools.partial(configs, name, dim, options.quick)) for name, dim in tuned
    ]
    return [Item(name, functools.partial(_run, function, options)) for name, function in tried]


def _run(function: Callable[[], dict[str, Any]], options: Options) -> dict[str, Any]:
    if options.card:
        raise SkipError("the emulator's time says nothing")
    torch.manual_seed(options.seed)
    return function()


def race(shape: Shape, quick: bool) -> dict[str, Any]:
    """All contenders on one shape. Raises WrongError where one of ours fails or disagrees with the truth."""
    good, reasons, differences = agreeing(all_of(shape), shape, TOLERANCE[shape.dtype])
    sets = shape.draw_sets()
    samples = _measure(good, sets, quick)
    medians = {name: summary(values) for name, values in samples.items()}
    peers = [name for name in samples if name not in OURS]
    data = {
        "shape": {"tokens": shape.tokens, "head_dim": shape.head_dim, "causal": shape.causal, "dtype": shape.dtype,
                  "batch": shape.batch, "heads": shape.heads, "flops": shape.flops},
        "difference": differences,
        "absent": reasons,
        "times": medians,
        "teraflops": {name: round(shape.flops / one["median"] / 1e12, 2) for name, one in medians.items()},
        "ratios": {
            ours: {peer: speedup(samples[ours], samples[peer]) for peer in peers} for ours in OURS if ours in samples
        },
    }  # fmt: skip
    if failed := [f"{name}: {reasons[name]}" for name in OURS if name in reasons]:
        raise WrongError("; ".join(failed), data)
    return data


def configs(name: str, head_dim: int, quick: bool) -> dict[str, Any]:
    """Every legal config of a family on one causal shape, the fastest first; the default is marked."""
    shape = Shape(CONFIG_LENGTH, head_dim, True, "bfloat16" if name == "sm80" else "float16")
    default = _default(name, shape)
    found = [default, *space(FAMILIES[name].family, head_dim, head_dim, detect(contenders.DEVICE))]
    calls: dict[str, Call] = {str(config): direct(name, shape, config) for config in dict.fromkeys(found)}
    good, reasons, _ = agreeing(calls, shape, TOLERANCE[shape.dtype])
    samples = _measure(good, shape.draw_sets(), quick)
    order = sorted(samples, key=lambda one: summary(samples[one])["median"])
    data = {
        "shape": str(shape),
        "default": str(default),
        "absent": reasons,
        "configs": [
            {"config": one, "teraflops": round(shape.flops / summary(samples[one])["median"] / 1e12, 2),
             "times": summary(samples[one])}
            for one in order
        ],
    }  # fmt: skip
    if reasons:
        raise WrongError("; ".join(f"[{config}] {reason}" for config, reason in reasons.items()), data)
    return data


def _default(name: str, shape: Shape) -> Config:
    problem = AttentionProblem(
        dtype=shape.dtype, batch=shape.batch, seqlen_q=shape.tokens, seqlen_k=shape.tokens, heads_q=shape.heads,
        heads_kv=shape.heads, head_dim=shape.head_dim, head_dim_v=shape.head_dim,
        band=Band(right=0 if shape.causal else -1),
    )  # fmt: skip
    return FAMILIES[name].tiles(problem, detect(contenders.DEVICE))


def _measure(calls: dict[str, Call], sets: Any, quick: bool) -> dict[str, list[float]]:
    """Seconds of a call in each round."""
    counts = {name: calls_for(call, sets) for name, call in calls.items()}
    rounds = {name: timed(call, sets, counts[name]) for name, call in calls.items()}
    return {name: one["call"] for name, one in interleave(rounds, QUICK_EFFORT if quick else EFFORT).items()}


def first_call() -> dict[str, Any]:
    """Seconds to compile a kernel, and to take it from the disk cache."""
    device = torch.device(contenders.DEVICE)
    shape = {"seqlen_q": 4096, "seqlen_k": 4096, "head_dim": 128, "head_dim_v": 128, "batch": 1}
    found = {}
    for name in FAMILIES:
        call = prepare(Trial(name, torch.float16, ("causal",), shape=shape), device, detect(device))
        source, target = call.kernel.source, nvrtc.target_of(detect(device).arch)
        compiled = nvrtc.compile(source, target)
        cubin_cache.compile_cached(source, target)
        cubin_cache.forget()
        start = time.perf_counter()
        cubin_cache.compile_cached(source, target)
        found[name] = {"compile": round(compiled.seconds, 4), "from_disk": round(time.perf_counter() - start, 5)}
    return found


def host_time() -> dict[str, Any]:
    """Seconds that the host spends on a repeated call of tiny tensors, in batches that the device keeps up with."""
    q, k, v = (torch.randn(1, 128, 4, 64, device=contenders.DEVICE, dtype=torch.float16) for _ in range(3))
    by_heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    shape = Shape(128, 64, True, "float16")
    calls: dict[str, Callable[[], Any]] = {
        "faops": lambda: faops.attention(q, k, v, causal=True),
        "faops forced": lambda: faops.attention(q, k, v, causal=True, backend="cuda_raw"),
        "sdpa": lambda: functional.scaled_dot_product_attention(*by_heads, is_causal=True),
    }
    for name in FAMILIES:
        calls[f"{name} launch"] = functools.partial(direct(name, shape), q, k, v)
    found = {}
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        samples = []
        for _ in range(10):
            start = time.perf_counter()
            for _ in range(HOST_CALLS // 10):
                call()
            samples.append((time.perf_counter() - start) * 10 / HOST_CALLS)
            torch.cuda.synchronize()
        found[name] = summary(samples)
    return found
