"""Section "graph": launching as programs do it. CUDA graphs, streams, threads, other devices, no synchronisation."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import faops
from benchmarks.gpu.attention import FAMILIES, Call, Trial, attention_inputs, check_result, poison, prepare
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError
from faops.backends.cuda_raw.launch import launch
from faops.backends.cuda_raw.space import make_config
from faops.backends.cuda_raw.specialize import specialise
from faops.device import detect
from faops.errors import CaptureError
from faops.registry import Config

DEVICE = "cuda"
SHAPE = {"seqlen_q": 200, "seqlen_k": 300, "head_dim": 64, "head_dim_v": 64}
SLEEP_CYCLES = 50_000_000  # some 30 ms, far longer than everything else that is enqueued
THREADS = 8
REPEATS = 20
MANY_HEADS = 70_000  # a block each
FAR = 2**31 + 64  # elements
# Configs that nothing else of this section uses, so that their kernels are not loaded yet.
FRESH = [make_config(64, tile_n, 2, 1, q) for tile_n in (16, 32, 64) for q in (False, True)]


def items(options: Options) -> list[Item]:
    tried: list[tuple[str, Callable[[str, int], None]]] = [
        ("same bits twice", same_bits),
        ("capture and replay", capture_and_replay),
        ("loading under capture", loading_under_capture),
        ("another stream", another_stream),
        ("another thread", another_thread),
        ("threads at once", threads_at_once),
        ("second device", second_device),
        ("no synchronisation", no_synchronisation),
        ("no memory", no_memory),
        ("more than 65535 blocks", many_blocks),
        ("strides beyond 2^31", far_strides),
    ]
    found = [
        Item(f"{family} {name}", functools.partial(_run, function, family, options))
        for family in FAMILIES
        for name, function in tried
    ]
    return [*found, Item("public call under capture", functools.partial(_run, public_call, "", options))]


def _run(function: Callable[[str, int], None], family: str, options: Options) -> dict[str, Any]:
    if options.card:
        raise SkipError("the emulator has no streams")
    function(family, options.seed)
    return {}


def make_call(family: str, seed: int, config: Config | None = None, device: str = "", **shape: Any) -> Call:
    """A causal call on ``device``, or the current one."""
    trial = Trial(family, torch.float16, ("causal",), config, {**SHAPE, **shape}, seed)
    where = torch.device(device or DEVICE)
    return prepare(trial, where, detect(where))


def run(call: Call) -> None:
    launch(call.kernel, call.operands)


def clear(call: Call) -> None:
    """Poison the results again."""
    assert call.operands.lse is not None
    poison(call.operands.out)
    poison(call.operands.lse)


def same_bits(family: str, seed: int) -> None:
    call = make_call(family, seed)
    run(call)
    first = call.operands.out.clone()
    clear(call)
    run(call)
    assert torch.equal(first, call.operands.out), "two launches on the same inputs differ"
    check_result(call, "the second launch")


def capture_and_replay(family: str, seed: int) -> None:
    """A captured launch computes from what its tensors hold at each replay."""
    fixed, other = make_call(family, seed), make_call(family, seed + 1)
    run(fixed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(fixed)
    clear(fixed)
    graph.replay()
    check_result(fixed, "the first replay")
    for name in ("q", "k", "v"):
        getattr(fixed.operands, name).copy_(getattr(other.operands, name))
    clear(fixed)
    graph.replay()
    check_result(replace(other, operands=fixed.operands), "a replay with new inputs")


def loading_under_capture(family: str, seed: int) -> None:
    """Refused with a clear error, after which the same call works outside and inside a capture."""
    call = make_call(family, seed, FRESH[0])
    graph = torch.cuda.CUDAGraph()
    said = ""
    with torch.cuda.graph(graph):
        marker = torch.ones(1, device=DEVICE)
        try:
            run(call)
        except CaptureError as error:
            said = str(error)
    assert "captured" in said, f"expected a CaptureError that speaks of capturing, got {said!r}"
    graph.replay()
    assert marker.item() == 1.0
    run(call)
    check_result(call, "after the refusal")
    clear(call)
    again = torch.cuda.CUDAGraph()
    with torch.cuda.graph(again):
        run(call)
    again.replay()
    check_result(call, "captured after the refusal")


def another_stream(family: str, seed: int) -> None:
    """The launch waits for what was enqueued on the current stream before it."""
    call = make_call(family, seed)
    run(call)
    values = call.operands.q.clone()
    call.operands.q.fill_(torch.nan)
    clear(call)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        call.operands.q.copy_(values)
        run(call)
    stream.synchronize()
    check_result(call, "on a stream of its own")


def another_thread(family: str, seed: int) -> None:
    """A new thread launches a kernel that is loaded, and loads one that is not."""
    known, fresh = make_call(family, seed), make_call(family, seed, FRESH[1])
    run(known)
    clear(known)
    torch.cuda.synchronize()
    for call in (known, fresh):
        _in_threads([functools.partial(run, call)])
        check_result(call, "from another thread")


def threads_at_once(family: str, seed: int) -> None:
    """Threads that all want the same kernels for the first time."""
    calls = [make_call(family, seed + i, FRESH[2 + i % 2]) for i in range(THREADS)]
    torch.cuda.synchronize()
    _in_threads([functools.partial(run, call) for call in calls])
    for call in calls:
        check_result(call, "from one of many threads")


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


def second_device(family: str, seed: int) -> None:
    """Tensors of another device than the current one."""
    if torch.cuda.device_count() < 2:
        raise SkipError("there is one device")
    call = make_call(family, seed, device="cuda:1")
    before = torch.cuda.current_device()
    run(call)
    assert torch.cuda.current_device() == before, "the current device has changed"
    check_result(call, "on the second device")


def no_synchronisation(family: str, seed: int) -> None:
    call = make_call(family, seed)
    run(call)
    with _no_synchronisation():
        for _ in range(REPEATS):
            run(call)
    # What the mode above does not see: a launch that waits for the device would wait for this.
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    before.record()
    run(call)
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


def no_memory(family: str, seed: int) -> None:
    """A launch takes nothing from torch's allocator, nor, once loaded, from the device."""
    call = make_call(family, seed)
    run(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, (free, _) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    for _ in range(REPEATS):
        run(call)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == held, "a launch takes memory from torch"
    assert torch.cuda.mem_get_info()[0] >= free, "a launch takes memory from the device"


def many_blocks(family: str, seed: int) -> None:
    shape: dict[str, Any] = {"batch": 1, "seqlen_q": 2, "seqlen_k": 3, "heads_q": MANY_HEADS, "heads_kv": MANY_HEADS}
    call = make_call(family, seed, **shape, head_dim=16, head_dim_v=16)
    assert call.kernel.grid == MANY_HEADS
    run(call)
    check_result(call, "many heads")


def far_strides(family: str, seed: int) -> None:
    """Batch entries more than 2^31 elements apart."""
    call = make_call(family, seed)
    if torch.cuda.mem_get_info()[0] < 3 * (FAR * 2 + 2**30):
        raise SkipError("less than 16 GB of device memory are free")
    far = [_spread(tensor) for tensor in call.operands[:3] if tensor is not None]
    inputs = attention_inputs(call.case, call.tensors, call.seed, far[0].device)
    inputs.q, inputs.k, inputs.v = far
    operands = call.operands._replace(q=far[0], k=far[1], v=far[2])
    kind = FAMILIES[family]
    kernel = specialise(kind.family, inputs, operands, kind.tiles(inputs.problem(), detect(far[0].device)))
    launch(kernel, operands)
    check_result(call, "far strides")


def _spread(tensor: Tensor) -> Tensor:
    """The same values with batch entries FAR elements apart."""
    buffer = tensor.new_empty(FAR * (tensor.shape[0] - 1) + tensor[0].numel())
    view = buffer.as_strided(tensor.shape, (FAR, *tensor[0].contiguous().stride()))
    return view.copy_(tensor)


def public_call(family: str, seed: int) -> None:
    """faops.attention with the backend forced, plain and captured, against SDPA."""
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 300, 4, 64, device=DEVICE, dtype=torch.float16) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2).float(), k.transpose(1, 2).float(), v.transpose(1, 2).float(), is_causal=True
    ).transpose(1, 2)
    out = faops.attention(q, k, v, causal=True, backend="cuda_raw")
    torch.testing.assert_close(out.float(), expected, atol=5e-3, rtol=5e-3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = faops.attention(q, k, v, causal=True, backend="cuda_raw")
    captured.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, out), "the replay differs from the plain call"
