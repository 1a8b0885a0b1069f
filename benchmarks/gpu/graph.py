"""Section "graph": launching as programs do it. CUDA graphs, streams, threads, other devices, no synchronisation."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import faops
from benchmarks.gpu import triton_calls
from benchmarks.gpu.attention import FAMILIES, Trial, prepare
from benchmarks.gpu.launched import Launched, RawLaunched
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from benchmarks.gpu.raw_decode import own_kernel
from benchmarks.gpu.triton_calls import BACKEND, Place
from benchmarks.gpu.triton_correctness import unavailable
from benchmarks.gpu.triton_decode import DecodeCall
from faops.backends.cuda_raw.tiles import make_config
from faops.device import detect
from faops.errors import CaptureError
from faops.problem import OPS, Op

DEVICE = "cuda"
SHAPE = {"seqlen_q": 200, "seqlen_k": 300, "head_dim": 64, "head_dim_v": 64}
DECODE_SHAPE = {"capacity": 300, "head_dim": 64}
SLEEP_CYCLES = 50_000_000  # some 30 ms, far longer than everything else that is enqueued
THREADS = 8
REPEATS = 20
MANY_HEADS = 70_000  # a block each
FAR = 2**31 + 64  # elements
PUBLIC_TOKENS = 300
# Configs that nothing else of this section uses, so that their kernels are not loaded yet.
FRESH = [make_config(64, tile_n, 2, 1, q) for tile_n in (16, 32, 64) for q in (False, True)]
TRITON: dict[str, Op] = {f"{BACKEND} {op}": op for op in OPS}
RAW_DECODE = "cuda_raw decode"
# Kinds of calls that the registry's kernels launch themselves, results and buffers included, by op.
REGISTERED: dict[str, Op] = {**TRITON, RAW_DECODE: "decode"}

Try = Callable[[str, int], None]


def items(options: Options) -> list[Item]:
    """What is tried with each kind of kernel, by the kind and the seed; then what is tried with the public calls."""
    everywhere: list[tuple[str, Try]] = [
        ("same bits twice", same_bits),
        ("capture and replay", capture_and_replay),
        ("loading under capture", loading_under_capture),
        ("another stream", another_stream),
        ("another thread", another_thread),
        ("threads at once", threads_at_once),
        ("second device", second_device),
        ("no synchronisation", no_synchronisation),
        ("strides beyond 2^31", far_strides),
    ]
    # The others make their results and buffers themselves, and have their blocks on one axis anyway.
    raw_alone: list[tuple[str, Try]] = [("no memory", no_memory), ("more than 65535 blocks", many_blocks)]
    found = [(f"{kind} {name}", function, kind) for kind in FAMILIES for name, function in (*everywhere, *raw_alone)]
    found += [(f"{kind} {name}", function, kind) for kind in REGISTERED for name, function in everywhere]
    found += [(f"{kind} growing lengths", growing_lengths, kind) for kind, op in REGISTERED.items() if op == "decode"]
    found += [(f"{name} under capture, {backend}", function, backend) for name, function, backend in PUBLIC]
    return [Item(name, functools.partial(_run, function, kind, options)) for name, function, kind in found]


def _run(function: Try, kind: str, options: Options) -> dict[str, Any]:
    if options.card:
        raise SkipError("neither emulator nor interpreter have streams")
    if kind.startswith(BACKEND) and (reason := unavailable(detect(torch.device(DEVICE)))):
        raise SkipError(reason)
    function(kind, options.seed)
    return {}


def make_call(kind: str, seed: int, fresh: int | None = None, device: str = "", **shape: Any) -> Launched:
    """A call on ``device``, or the current one; with a config that nothing else uses where ``fresh`` numbers one."""
    where = torch.device(device or DEVICE)
    if kind in FAMILIES:
        config = None if fresh is None else FRESH[fresh]
        trial = Trial(kind, torch.float16, ("causal",), config, {**SHAPE, **shape}, seed)
        return RawLaunched(kind, prepare(trial, where, detect(where)))
    op = REGISTERED[kind]
    features = ("append", "gqa") if op == "decode" else ("causal",)
    sizes = DECODE_SHAPE if op == "decode" else SHAPE
    kernel = own_kernel(detect(where)).id if kind == RAW_DECODE else ""
    drawn = triton_calls.Trial(op, torch.float16, features, shape=sizes, seed=seed, kernel=kernel)
    call = triton_calls.prepare(drawn, Place(where, detect(where)))
    if fresh is not None:
        call.use_another_config(fresh)
    return call


def same_bits(kind: str, seed: int) -> None:
    call = make_call(kind, seed)
    call.run()
    first = triton_calls.copies(call.results)
    call.clear()
    call.run()
    assert triton_calls.equal(first, call.results), "two launches on the same inputs differ"
    call.check(call.results, "the second launch")


def capture_and_replay(kind: str, seed: int) -> None:
    """A captured launch computes from what its tensors hold at each replay."""
    fixed, other = make_call(kind, seed), make_call(kind, seed + 1)
    fixed.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fixed.run()
    fixed.clear()
    graph.replay()
    fixed.check(fixed.results, "the first replay")
    for mine, theirs in zip(fixed.operands(), other.operands(), strict=True):
        mine.copy_(theirs)
    fixed.clear()
    graph.replay()
    other.check(fixed.results, "a replay with new inputs")


def growing_lengths(kind: str, seed: int) -> None:
    """One captured call serves all lengths: the device reads them, and the splits share out what there is."""
    call = make_call(kind, seed)
    assert isinstance(call, DecodeCall) and call.inputs.k is not None
    call.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call.run()
    most = call.inputs.capacity - call.inputs.k.shape[1]
    for length in (0, 1, most // 2, most):
        call.set_lengths(torch.full((call.inputs.q.shape[0],), length, dtype=torch.int32))
        call.clear()
        graph.replay()
        call.check(call.results, f"a replay at length {length}")


def loading_under_capture(kind: str, seed: int) -> None:
    """Refused with a clear error, after which the same call works outside and inside a capture."""
    call = make_call(kind, seed, fresh=0)
    graph = torch.cuda.CUDAGraph()
    said = ""
    with torch.cuda.graph(graph):
        marker = torch.ones(1, device=DEVICE)
        try:
            call.run()
        except CaptureError as error:
            said = str(error)
    assert "captured" in said, f"expected a CaptureError that speaks of capturing, got {said!r}"
    graph.replay()
    assert marker.item() == 1.0
    call.run()
    call.check(call.results, "after the refusal")
    again = torch.cuda.CUDAGraph()
    with torch.cuda.graph(again):
        call.run()
    call.clear()
    again.replay()
    call.check(call.results, "captured after the refusal")


def another_stream(kind: str, seed: int) -> None:
    """The launch waits for what was enqueued on the current stream before it."""
    call = make_call(kind, seed)
    call.run()
    operand = call.operands()[0]
    values = operand.clone()
    operand.fill_(torch.nan)
    call.clear()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        operand.copy_(values)
        call.run()
    stream.synchronize()
    call.check(call.results, "on a stream of its own")


def another_thread(kind: str, seed: int) -> None:
    """A new thread launches a kernel that is loaded, and loads one that is not."""
    known, fresh = make_call(kind, seed), make_call(kind, seed, fresh=1)
    known.run()
    known.clear()
    torch.cuda.synchronize()
    for call in (known, fresh):
        _in_threads([call.run])
        call.check(call.results, "from another thread")


def threads_at_once(kind: str, seed: int) -> None:
    """Threads that all want the same kernels for the first time."""
    calls = [make_call(kind, seed + i, fresh=2 + i % 2) for i in range(THREADS)]
    torch.cuda.synchronize()
    _in_threads([call.run for call in calls])
    for call in calls:
        call.check(call.results, "from one of many threads")


def _in_threads(functions: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; raises the first error."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    if errors:
        raise errors[0]


def second_device(kind: str, seed: int) -> None:
    """Tensors of another device than the current one."""
    if torch.cuda.device_count() < 2:
        raise SkipError("there is one device")
    call = make_call(kind, seed, device="cuda:1")
    before = torch.cuda.current_device()
    call.run()
    assert torch.cuda.current_device() == before, "the current device has changed"
    call.check(call.results, "on the second device")


def no_synchronisation(kind: str, seed: int) -> None:
    call = make_call(kind, seed)
    call.run()
    with _no_synchronisation():
        for _ in range(REPEATS):
            call.run()
    # What the mode above does not see: a launch that waits for the device would wait for this.
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    before.record()
    call.run()
    after.record()
    assert not after.query(), "the launch waited for what was enqueued before it"  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Torch raises for every operation of its own that waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_memory(kind: str, seed: int) -> None:
    """A launch takes nothing from torch's allocator, nor, once loaded, from the device."""
    call = make_call(kind, seed)
    call.run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    for _ in range(REPEATS):
        call.run()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == held, "a launch takes memory from torch"
    assert torch.cuda.mem_get_info()[0] >= free, "a launch takes memory from the device"


def many_blocks(kind: str, seed: int) -> None:
    shape: dict[str, Any] = {"batch": 1, "seqlen_q": 2, "seqlen_k": 3, "heads_q": MANY_HEADS, "heads_kv": MANY_HEADS}
    call = make_call(kind, seed, **shape, head_dim=16, head_dim_v=16)
    assert isinstance(call, RawLaunched) and call.blocks == MANY_HEADS
    call.run()
    call.check(call.results, "many heads")


def far_strides(kind: str, seed: int) -> None:
    """Batch entries more than 2^31 elements apart."""
    call = make_call(kind, seed)
    call.spread(_spread)
    call.run()
    call.check(call.results, "far strides")


def _spread(tensor: Tensor) -> Tensor:
    """The same values with batch entries FAR elements apart."""
    elements = FAR * (tensor.shape[0] - 1) + tensor[0].numel()
    if torch.cuda.mem_get_info()[0] < elements * tensor.element_size():
        raise SkipError("too little device memory is free")
    buffer = tensor.new_empty(elements)
    view = buffer.as_strided(tensor.shape, (FAR, *tensor[0].contiguous().stride()))
    return view.copy_(tensor)


def public_call(backend: str, seed: int) -> None:
    """faops.attention with the backend forced, plain and captured, against SDPA."""
    q, k, v = _draw(seed)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2).float(), k.transpose(1, 2).float(), v.transpose(1, 2).float(), is_causal=True
    ).transpose(1, 2)
    (out,) = _captured(lambda: (faops.attention(q, k, v, causal=True, backend=backend),))
    torch.testing.assert_close(out.float(), expected, atol=5e-3, rtol=5e-3)


def public_backward(backend: str, seed: int) -> None:
    """The same with gradients, forward and backward in one graph."""
    q, k, v = (tensor.requires_grad_() for tensor in _draw(seed))
    dout = torch.randn_like(q)

    def call() -> tuple[Tensor, ...]:
        out = faops.attention(q, k, v, causal=True, backend=backend)
        return torch.autograd.grad(out, (q, k, v), dout)

    exact = tuple(tensor.detach().float().requires_grad_() for tensor in (q, k, v))
    by_heads = (tensor.transpose(1, 2) for tensor in exact)
    truth = torch.nn.functional.scaled_dot_product_attention(*by_heads, is_causal=True).transpose(1, 2)
    expected = torch.autograd.grad(truth, exact, dout.float())
    for gradient, other in zip(_captured(call), expected):
        torch.testing.assert_close(gradient.float(), other, atol=2e-2, rtol=2e-2)


def public_decode(backend: str, seed: int) -> None:
    """faops.attention_with_kvcache on a cache of which it sees all but the last key."""
    q, k_cache, v_cache = _draw(seed)
    q, seen = q[:, :1], k_cache.shape[1] - 1
    lengths = torch.full((q.shape[0],), seen, dtype=torch.int32, device=DEVICE)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2).float() for tensor in (q, k_cache[:, :seen], v_cache[:, :seen]))
    ).transpose(1, 2)
    (out,) = _captured(
        lambda: (faops.attention_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths, backend=backend),)
    )
    torch.testing.assert_close(out.float(), expected, atol=5e-3, rtol=5e-3)


PUBLIC: tuple[tuple[str, Try, str], ...] = (
    ("attention", public_call, "cuda_raw"),
    ("attention", public_call, BACKEND),
    ("attention and its gradient", public_backward, BACKEND),
    ("attention_with_kvcache", public_decode, "cuda_raw"),
    ("attention_with_kvcache", public_decode, BACKEND),
)


def _draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, PUBLIC_TOKENS, 4, 64, device=DEVICE, dtype=torch.float16) for _ in range(3))
    return q, k, v


def _captured(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What the replay of a captured ``call`` computes, which has to be what ``call`` computes."""
    plain = call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    with torch.no_grad():
        triton_calls.poison(captured)
    graph.replay()
    torch.cuda.synchronize()
    for mine, other in zip(captured, plain, strict=True):
        assert torch.equal(mine, other), "the replay differs from the plain call"
    return captured
