"""Section "triton_timing": backward alone and decoding against PyTorch's kernels, and every config of both.

Forwards are compared in section "timing". Backward counts 2.5 times the operations of its forward; decoding is held
against the bandwidth of a copy in the same rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import contenders
from benchmarks.gpu.contenders import Shape, gradient_truth, has_triton, truth
from benchmarks.gpu.contenders_backward import FLOPS, OURS, all_backward, backward_inputs, default_config
from benchmarks.gpu.contenders_decode import COPY, Cache, all_decode, copying, decode_inputs, is_ours
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from benchmarks.gpu.racing import TOLERANCE, Contender, contest, judged, per_second, ranking
from benchmarks.gpu.timing import CONFIG_LENGTH, QUICK_LENGTHS, TERA, head_dims, measured, shapes
from benchmarks.gpu.triton_calls import kernel_of
from faops.device import detect
from faops.registry import Config, Kernel, Rejected

GIGA = 1e9
CACHES = (Cache(16, 16384), Cache(1, 262144), Cache(128, 2048))  # a GiB of keys and values each
# Gradients add up more terms, and start from a rounded out.
GRADIENT_TOLERANCE = {dtype: 2 * allowed for dtype, allowed in TOLERANCE.items()}
MEMORY = 8  # caches that a race of decoding holds: dense, of each page size, to copy, and to spare
TUNED_PAGES = (16, 0)  # a page size, and the dense cache


def items(options: Options) -> list[Item]:
    caches = CACHES[:1] if options.quick else CACHES
    tried: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (str(cache), functools.partial(decode, cache, options.quick)) for cache in caches
    ]
    races = [
        (f"backward {shape}", functools.partial(backward, shape, options.quick)) for shape in backward_shapes(options)
    ]
    first = 2 * len(QUICK_LENGTHS)
    tried += races[:first]
    tried += [
        (f"configs of backward d{dim}", functools.partial(backward_configs, dim, options.quick))
        for dim in head_dims(options)
    ]
    tried += [
        (f"configs of decode, {f'pages of {size}' if size else 'dense'}",
         functools.partial(decode_configs, CACHES[0], size, options.quick))
        for size in TUNED_PAGES
    ]  # fmt: skip
    tried += races[first:]
    return [Item(name, functools.partial(measured, function, options)) for name, function in tried]


def backward_shapes(options: Options) -> list[Shape]:
    """Those of the forward races, float16 at one length."""
    return [shape for shape in shapes(options) if shape.dtype == "bfloat16" or shape.tokens == CONFIG_LENGTH]


def backward(shape: Shape, quick: bool) -> dict[str, Any]:
    """All contenders backward on one shape. Raises WrongError where one of ours fails or disagrees with the truth."""
    sets = [(*one, shape.draw_one()) for one in shape.draw_sets()]
    truths = gradient_truth(*sets[0], shape.causal)
    data = contest(all_backward(shape), sets, truths, GRADIENT_TOLERANCE[shape.dtype], OURS, quick)
    rates = per_second(FLOPS * shape.flops / TERA, data["times"])
    return judged({"kind": "backward", "shape": shape.as_dict(), **data, "teraflops": rates}, OURS)


def backward_configs(head_dim: int, quick: bool) -> dict[str, Any]:
    """Every legal config on one causal shape, the fastest first, deterministic ones and those that add atomically."""
    shape = Shape(CONFIG_LENGTH, head_dim, True, "bfloat16")
    if not has_triton(shape):
        raise SkipError("Triton's kernels do not run here")
    profile = detect(contenders.DEVICE)
    found = kernel_of("backward").configs(shape.problem("backward"), profile)
    drawn = [(*one, shape.draw_one()) for one in shape.draw_sets()]
    made = {str(config): _launching(kernel_of("backward"), config, 3) for config in found}
    sets, truths = [(backward_inputs(shape, *one),) for one in drawn], gradient_truth(*drawn[0], True)
    default, tolerance = str(default_config(shape, profile)), GRADIENT_TOLERANCE[shape.dtype]
    ranked = ranking(made, default, sets, truths, tolerance, quick, "teraflops", FLOPS * shape.flops / TERA)
    return {"shape": str(shape), **ranked}


def decode(cache: Cache, quick: bool) -> dict[str, Any]:
    """All contenders on one cache, and a copy of as many bytes as it holds, among the same rounds."""
    free = torch.cuda.mem_get_info()[0]
    if free < MEMORY * cache.bytes:
        raise SkipError(f"{free / GIGA:.1f} GB of device memory are free, {MEMORY * cache.bytes / GIGA:.1f} needed")
    q, k_cache, v_cache = cache.draw()
    makers = all_decode(cache)
    ours = [name for name in makers if is_ours(name)]
    truths = [_decoded(q, k_cache, v_cache)]
    beside = {COPY: copying(cache)}
    data = contest(makers, [(q, k_cache, v_cache)], truths, TOLERANCE[cache.dtype], ours, quick, beside)
    medians = {name: one["median"] for name, one in data["times"].items()}
    copying_once = medians.pop(COPY) / 2  # what is copied is read and written
    data |= {
        "gigabytes": {
            **per_second(cache.bytes / GIGA, data["times"]),
            COPY: round(cache.bytes / GIGA / copying_once, 2),
        },
        "of_copy_bandwidth": {name: round(copying_once / median, 4) for name, median in medians.items()},
    }
    return judged({"kind": "decode", "shape": cache.as_dict(), **data}, ours)


def decode_configs(cache: Cache, page_size: int, quick: bool, kernel: Kernel | None = None) -> dict[str, Any]:
    """Every legal config of Triton's or another ``kernel`` on one cache, the fastest first."""
    problem, profile, kernel = cache.problem(page_size), detect(contenders.DEVICE), kernel or kernel_of("decode")
    decision = kernel.check(problem, profile)
    if isinstance(decision, Rejected):
        raise SkipError(f"{kernel.id}: {'; '.join(decision.reasons)}")
    q, k_cache, v_cache = cache.draw()
    inputs = decode_inputs(cache, page_size, q, k_cache, v_cache)
    made = {str(config): _launching(kernel, config, 1) for config in kernel.configs(problem, profile)}
    default = str(kernel.default_config(problem, profile))
    truths = [_decoded(q, k_cache, v_cache)]
    tolerance = TOLERANCE[cache.dtype]
    ranked = ranking(made, default, [(inputs,)], truths, tolerance, quick, "gigabytes", cache.bytes / GIGA)
    return {"shape": str(cache), "page_size": page_size, **ranked}


def _launching(kernel: Kernel, config: Config, results: int) -> Contender:
    """A contender that launches ``kernel`` on the inputs it is made from."""
    return lambda inputs: lambda: kernel.launch(inputs, config)[:results]


def _decoded(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """The last head of the last sequence; it reads the last heads of the caches."""
    return truth(q, k_cache, v_cache, causal=False)
