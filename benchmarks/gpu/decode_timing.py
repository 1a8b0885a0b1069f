"""Section "decode_timing": one new token a sequence, over batches and lengths, against the bandwidth of a copy.

Every race has both backends' kernels on the dense cache and on pages, PyTorch's on the dense one, FlashInfer's on pages
where it is installed, and a copy of as many bytes in the same rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product
from typing import Any

from benchmarks.gpu import contenders
from benchmarks.gpu.contenders_decode import Cache
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item
from benchmarks.gpu.raw_decode import dtypes, own_kernel
from benchmarks.gpu.timing import measured
from benchmarks.gpu.triton_timing import TUNED_PAGES, decode, decode_configs
from faops.device import detect
from faops.problem import DTYPE_NAMES

BATCHES, TOKENS = (1, 8, 64), (131072, 32768, 8192, 1024)
QUICK_BATCHES, QUICK_TOKENS = (1, 64), (32768, 1024)
TUNED = (16, 16384)  # batch and tokens on which every config is timed


def items(options: Options) -> list[Item]:
    shapes = product(*((QUICK_BATCHES, QUICK_TOKENS) if options.quick else (BATCHES, TOKENS)))
    tried: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        (f"decode {batch} x {tokens}", functools.partial(race, batch, tokens, options.quick))
        for batch, tokens in shapes
    ]
    tried += [
        (f"configs of raw decode, {f'pages of {size}' if size else 'dense'}",
         functools.partial(configs, size, options.quick))
        for size in TUNED_PAGES
    ]  # fmt: skip
    return [Item(name, functools.partial(measured, function, options)) for name, function in tried]


def race(batch: int, tokens: int, quick: bool) -> dict[str, Any]:
    """All contenders on ``batch`` full caches of ``tokens`` tokens."""
    return decode(_cache(batch, tokens), quick)


def configs(page_size: int, quick: bool) -> dict[str, Any]:
    """Every config of the raw CUDA kernel."""
    return decode_configs(_cache(*TUNED), page_size, quick, own_kernel(detect(contenders.DEVICE)))


def _cache(batch: int, tokens: int) -> Cache:
    return Cache(batch, tokens, DTYPE_NAMES[dtypes(detect(contenders.DEVICE))[0]])
