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
from torch import Tensor
from torch.nn import functional

import faops
from benchmarks.gpu import contenders
from benchmarks.gpu.attention import FAMILIES, Trial, prepare
from benchmarks.gpu.contenders import Call, Shape, all_of, direct, has_triton, triton_direct, truth, work_of
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from benchmarks.gpu.racing import TOLERANCE, contest, judged, per_second, ranking
from benchmarks.gpu.triton_calls import BACKEND, kernel_of
from benchmarks.harness import summary
from faops.backends.cuda_raw import cubin_cache, nvrtc
from faops.backends.cuda_raw.space import space
from faops.backends.triton import forward
from faops.backends.triton import launch as triton_launch
from faops.device import detect
from faops.registry import Config

OURS = ("sm80", "sm75", "triton", "faops")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
HEAD_DIMS = (128, 64, 256)
QUICK_LENGTHS = (1024, 4096)
QUICK_HEAD_DIMS = (128, 64)
CONFIG_LENGTH = 4096
TERA = 1e12
HOST_CALLS = 500
HOST_TOKENS = 128


def items(options: Options) -> list[Item]:
    tuned = [(name, dim) for dim in head_dims(options) for name in (*FAMILIES, BACKEND)]
    tried: list[tuple[str, Callable[[], dict[str, Any]]]] = [("first call", first_call), ("host time", host_time)]
    tried += [(str(shape), functools.partial(race, shape, options.quick)) for shape in shapes(options)]
    tried += [
        (f"configs of {name} d{dim}", functools.partial(configs, name, dim, options.quick)) for name, dim in tuned
    ]
    return [Item(name, functools.partial(measured, function, options)) for name, function in tried]


def head_dims(options: Options) -> tuple[int, ...]:
    return QUICK_HEAD_DIMS if options.quick else HEAD_DIMS


def shapes(options: Options) -> list[Shape]:
    """What is raced forward. float16 is there for the Turing kernel; two lengths show it."""
    lengths = QUICK_LENGTHS if options.quick else LENGTHS
    return [
        Shape(tokens, head_dim, causal, dtype)
        for dtype, head_dim, tokens, causal in itertools.product(
            ("bfloat16", "float16"), head_dims(options), reversed(lengths), (True, False)
        )
        if dtype == "bfloat16" or tokens in QUICK_LENGTHS
    ]


def measured(function: Callable[[], dict[str, Any]], options: Options) -> dict[str, Any]:
    """What ``function`` finds on the device, with the run's random inputs."""
    if options.card:
        raise SkipError("the time of an emulator or interpreter says nothing")
    torch.manual_seed(options.seed)
    return function()


def race(shape: Shape, quick: bool) -> dict[str, Any]:
    """All contenders on one shape. Raises WrongError where one of ours fails or disagrees with the truth."""
    sets = shape.draw_sets()
    data = contest(all_of(shape), sets, [truth(*sets[0], shape.causal)], TOLERANCE[shape.dtype], OURS, quick)
    data = {"shape": shape.as_dict(), **data, "teraflops": per_second(shape.flops / TERA, data["times"])}
    return judged(data, OURS)


def configs(name: str, head_dim: int, quick: bool) -> dict[str, Any]:
    """Every legal config of a kernel on one causal shape, the fastest first; the default is marked."""
    shape = Shape(CONFIG_LENGTH, head_dim, True, "float16" if name == "sm75" else "bfloat16")
    profile, problem = detect(contenders.DEVICE), shape.problem()
    makers: dict[Config, Call]
    if name == BACKEND:
        kernel = kernel_of("forward")
        if not has_triton(shape):
            raise SkipError("Triton's kernel does not run here")
        default = kernel.default_config(problem, profile)
        makers = {one: triton_direct(shape, one) for one in kernel.configs(problem, profile)}
    else:
        family = FAMILIES[name]
        default = family.tiles(problem, profile)
        tiles = (default, *space(family.family, head_dim, head_dim, profile))
        makers = {one: direct(name, shape, one) for one in tiles}
    made = {str(config): work_of(call) for config, call in makers.items()}
    sets = shape.draw_sets()
    truths, tolerance = [truth(*sets[0], True)], TOLERANCE[shape.dtype]
    found = ranking(made, str(default), sets, truths, tolerance, quick, "teraflops", shape.flops / TERA)
    return {"shape": str(shape), **found}


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
    q, k, v = (torch.randn(1, HOST_TOKENS, 4, 64, device=contenders.DEVICE, dtype=torch.float16) for _ in range(3))
    by_heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    shape = Shape(HOST_TOKENS, 64, True, "float16")
    calls: dict[str, Callable[[], Any]] = {
        "faops": lambda: faops.attention(q, k, v, causal=True),
        "faops cuda_raw": lambda: faops.attention(q, k, v, causal=True, backend="cuda_raw"),
        "sdpa": lambda: functional.scaled_dot_product_attention(*by_heads, is_causal=True),
    }
    for name in FAMILIES:
        calls[f"{name} launch"] = functools.partial(direct(name, shape), q, k, v)
    if has_triton(shape):
        calls["faops triton"] = lambda: faops.attention(q, k, v, causal=True, backend=BACKEND)
        calls["triton launch"] = functools.partial(triton_direct(shape), q, k, v)
        calls |= _bare_launches(shape, q, k, v)
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


def _bare_launches(shape: Shape, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Any]]:
    """The launch of the Triton kernel alone, results and arguments ready: ours, and the way that Triton offers."""
    kernel = kernel_of("forward")
    config = kernel.default_config(shape.problem(), detect(contenders.DEVICE))
    ((made, tensors),) = forward.launches(shape.inputs(q, k, v), config)
    arguments, function, options = made.arguments(tensors), made.function(), made.compiler_options()
    return {
        "triton repeated launch": lambda: triton_launch.launch("host time", tensors, lambda: made),
        "triton fn[grid]": lambda: function[made.grid](*arguments, **options),
    }
