"""Compiling what the timing sections launch, side by side and beforehand, into Triton's cache on disk.

The launches of a call are compiled for tensors like those that are timed, so that their kernels are specialised alike.
Registers and spills are among the figures. FlexAttention's kernels are compiled by running them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.contenders import Shape, flex
from benchmarks.gpu.contenders_backward import default_config, differentiated
from benchmarks.gpu.contenders_decode import PAGE_SIZES, Cache, decode_inputs
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError, WrongError
from benchmarks.gpu.timing import CONFIG_LENGTH, head_dims, shapes
from benchmarks.gpu.triton_calls import Place, kernel_of
from benchmarks.gpu.triton_correctness import unavailable
from benchmarks.gpu.triton_timing import CACHES, TUNED_PAGES, backward_shapes
from faops.backends.triton import backward, decode, forward
from faops.backends.triton.compile import compile_launch
from faops.backends.triton.launch import Launch, Tensors
from faops.device import DeviceProfile
from faops.errors import FaopsError
from faops.inputs import BackwardInputs
from faops.layout import empty_lse, empty_out
from faops.registry import Config

SECTION = "triton_compile"
META = torch.device("meta")  # the compiler looks at dtypes, strides and alignment

Launches = list[tuple[Launch, Tensors]]
Compiled = tuple[str, Callable[[], Launches]]  # a name, and what is to be compiled


def items(options: Options) -> list[Item]:
    """What is raced comes first, then what is ranked; the same kernels are compiled once."""
    profile = Place.of(options.card).profile
    ours = (*_raced(options, profile), *_decoding(profile))
    ranked = dict((*_ranked(options, profile), *_ranked_decoding(profile)))
    compiled = {name: functools.partial(compile_all, make, profile) for name, make in {**dict(ours), **ranked}.items()}
    first = len(dict(ours))
    found = [Item(name, run) for name, run in compiled.items()]
    peers = [Item(name, functools.partial(_run_flex, work)) for name, work in _flex(options)]
    return [*found[:first], *peers, *found[first:]]


def compile_all(make: Callable[[], Launches], profile: DeviceProfile) -> dict[str, Any]:
    """Compile every launch of a call. Raises WrongError where the compiler gives up."""
    if reason := unavailable(profile):
        raise SkipError(reason)
    try:
        found = {made.kernel: compile_launch(made, tensors, profile.arch) for made, tensors in make()}
    except FaopsError as error:
        raise WrongError(str(error), {}) from error
    return {
        "kernels": {
            name: {"registers": one.registers, "spill_bytes": one.spill_bytes, "shared_bytes": one.shared_bytes,
                   "threads": one.threads, "compile_seconds": round(one.seconds, 3)}
            for name, one in found.items()
        },
        "spill_bytes": sum(one.spill_bytes for one in found.values()),
    }  # fmt: skip


def _raced(options: Options, profile: DeviceProfile) -> Iterator[Compiled]:
    """The default configs. One length stands for all: lengths are no constants, and strides are multiples of 16."""
    for head_dim, causal, dtype in dict.fromkeys((one.head_dim, one.causal, one.dtype) for one in shapes(options)):
        shape = Shape(CONFIG_LENGTH, head_dim, causal, dtype)
        default = kernel_of("forward").default_config(shape.problem(), profile)
        yield _named("forward", shape, default, forward_launches)
        yield _named("forward with lse", shape, default, functools.partial(forward_launches, need_lse=True))
        for atomic in (False, True):
            yield _named("backward", shape, default_config(shape, profile, atomic), backward_launches)


def _ranked(options: Options, profile: DeviceProfile) -> Iterator[Compiled]:
    for head_dim in head_dims(options):
        shape = Shape(CONFIG_LENGTH, head_dim, True, "bfloat16")
        for config in kernel_of("forward").configs(shape.problem(), profile):
            yield _named("forward", shape, config, forward_launches)
        for config in kernel_of("backward").configs(shape.problem("backward"), profile):
            yield _named("backward", shape, config, backward_launches)


def _named(what: str, shape: Shape, config: Config, launches: Callable[[Shape, Config], Launches]) -> Compiled:
    return f"{what} {shape} [{config}]", functools.partial(launches, shape, config)


def forward_launches(shape: Shape, config: Config, need_lse: bool = False) -> Launches:
    q, k, v = (shape.draw_one(META) for _ in range(3))
    return forward.launches(shape.inputs(q, k, v, need_lse), config)


def backward_launches(shape: Shape, config: Config) -> Launches:
    q, k, v, dout = (shape.draw_one(META) for _ in range(4))
    inputs = shape.inputs(q, k, v, need_lse=True)
    asked = BackwardInputs(dout, None, inputs, empty_out(q, shape.head_dim), empty_lse(q), False, False)
    return backward.launches(asked, config)


def _decoding(profile: DeviceProfile) -> Iterator[Compiled]:
    """The default configs of the dense cache and of all page sizes."""
    for page_size in (0, *PAGE_SIZES):
        yield _paged(page_size, kernel_of("decode").default_config(CACHES[0].problem(page_size), profile), profile)


def _ranked_decoding(profile: DeviceProfile) -> Iterator[Compiled]:
    for page_size in TUNED_PAGES:
        for config in kernel_of("decode").configs(CACHES[0].problem(page_size), profile):
            yield _paged(page_size, config, profile)


def _paged(page_size: int, config: Config, profile: DeviceProfile) -> Compiled:
    name = f"{CACHES[0]} {f'pages of {page_size}' if page_size else 'dense'} [{config}]"
    return name, functools.partial(decode_launches, CACHES[0], page_size, config, profile)


def decode_launches(cache: Cache, page_size: int, config: Config, profile: DeviceProfile) -> Launches:
    return decode.launches(decode_inputs(cache, page_size, *cache.draw(META)), config, profile)


def _flex(options: Options) -> Iterator[tuple[str, Callable[[], Any]]]:
    """FlexAttention on everything that is raced, which it compiles for each length."""
    for shape in shapes(options):
        yield f"flex {shape}", functools.partial(_attend, shape)
    for shape in backward_shapes(options):
        yield f"flex backward {shape}", functools.partial(_differentiate, shape)


def _attend(shape: Shape) -> None:
    flex(shape.causal, *shape.draw())


def _differentiate(shape: Shape) -> None:
    differentiated(functools.partial(flex, shape.causal))(*shape.draw(), shape.draw_one())()


def _run_flex(work: Callable[[], None]) -> dict[str, Any]:
    try:
        work()
    except Exception as error:  # a peer that does not run is missing from the races, which say so
        raise SkipError(f"{type(error).__name__}: {error}") from error
    return {}
