"""The parts of the GPU suite that time and launch on a device, run in the emulator under a torch.cuda that is none."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import (
    contenders,
    contenders_backward,
    contenders_decode,
    decode_timing,
    graph,
    launched,
    racing,
    timing,
    triton_timing,
)  # fmt: skip
from benchmarks.gpu.contenders import Shape
from benchmarks.gpu.contenders_decode import Cache
from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import SkipError, WrongError
from benchmarks.gpu.raw_decode import own_kernel
from benchmarks.gpu.triton_calls import kernel_of
from faops import dispatch
from faops.backends.cuda_raw import decode as raw_decode
from faops.backends.cuda_raw import emulator, host, nvrtc
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.triton import launch as triton_launch
from faops.backends.triton.launch import Launch, Tensors
from faops.device import known
from faops.errors import CaptureError
from faops.registry import Config, Kernel

A100 = known("a100")
SHAPE = Shape(48, 32, True, "float16")
interpret = triton_launch.launch


class FakeEvent:
    """Device time is the host's."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


class FakeCuda:
    """A device that is the emulator, and Triton's interpreter: captures keep launches for their replays, and refuse
    kernels not yet loaded.
    """

    def __init__(self) -> None:
        self.loaded: set[Hashable] = set()
        self.capture: list[Callable[[], None]] | None = None
        self.broken = False  # launches do nothing

    def launch(self, kernel: Specialised, tensors: Sequence[Tensor | None]) -> None:
        self._enqueue(kernel.source.digest(), lambda: emulator.launch(kernel, tensors, A100.arch))

    def launch_triton(self, key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
        self._enqueue(key, lambda: interpret(key, tensors, build))

    def _enqueue(self, key: Hashable, run: Callable[[], None]) -> None:
        if self.capture is not None:
            if key not in self.loaded:
                raise CaptureError("a graph is being captured")
            self.capture.append(run)
            return
        self.loaded.add(key)
        if not self.broken:
            run()

    @contextlib.contextmanager
    def graph(self, made: list[Callable[[], None]]) -> Iterator[None]:
        self.capture = made
        yield
        self.capture = None

    def new_graph(self) -> Any:
        fake = self

        class Graph(list[Callable[[], None]]):
            def replay(self) -> None:
                for run in self:
                    if not fake.broken:
                        run()

        return Graph()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeCuda:
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, nothing was launched: {reason}")
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("FAOPS_CACHE_DIR", str(cache.mkdir("gpu_suite")))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is imported
    dispatch.forget()
    fake = FakeCuda()
    timed = (contenders, contenders_backward, contenders_decode, decode_timing, timing, triton_timing)
    for module in (*timed, graph, launched, raw_decode):
        monkeypatch.setattr(module, "detect", lambda device: A100)
    for module in (contenders, graph):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for module in (contenders, launched):
        monkeypatch.setattr(module, "launch", fake.launch)
    monkeypatch.setattr(host, "enqueue", fake.launch)
    monkeypatch.setattr(triton_launch, "launch", fake.launch_triton)
    small = {"seqlen_q": 40, "seqlen_k": 50, "heads_q": 1, "heads_kv": 1, "head_dim": 16, "head_dim_v": 16}
    of_decode = {"capacity": 40, "head_dim": 16}
    smaller = {"SHAPE": small, "DECODE_SHAPE": of_decode, "FAR": 10_000, "MANY_HEADS": 30, "REPEATS": 2, "THREADS": 2,
               "PUBLIC_TOKENS": 40}  # fmt: skip
    for name, value in smaller.items():
        monkeypatch.setattr(graph, name, value)
    monkeypatch.setattr(contenders, "TOKENS", 96)
    monkeypatch.setattr(contenders, "WIDTH", 64)
    monkeypatch.setattr(contenders, "MAX_SETS", 2)
    monkeypatch.setattr(racing, "MIN_TIMED", 1e-6)
    monkeypatch.setattr(racing, "QUICK_EFFORT", racing.Effort(0.0, 2, 2, 0))
    nothing = lambda *rest: None  # noqa: E731
    fakes: dict[str, Any] = {
        "CUDAGraph": fake.new_graph, "graph": fake.graph, "Event": FakeEvent, "Stream": FakeEvent,
        "stream": lambda stream: contextlib.nullcontext(), "synchronize": nothing, "_sleep": nothing,
        "set_sync_debug_mode": nothing, "reset_peak_memory_stats": nothing, "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0, "mem_get_info": lambda: (2**60, 2**60), "device_count": lambda: 1,
    }  # fmt: skip
    for name, function in fakes.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return fake


# ---------------------------------------------------------------------------------------------- launching


def tried(*kinds: str) -> list[Any]:
    """Every item of the section for these kinds of kernels."""
    return [item for item in graph.items(Options()) if item.name.startswith(kinds)]


def marked(item: Any) -> Any:
    """All kinds go through every item; of these, all but a few items are left for the long run."""
    long = item.name.startswith((graph.RAW_DECODE, "triton backward", "triton decode"))
    short = item.name.endswith(("capture and replay", "loading under capture", "growing lengths"))
    return pytest.param(item, marks=[pytest.mark.full] if long and not short else [], id=item.name)


@pytest.mark.parametrize("item", [marked(item) for item in tried("sm80", *graph.REGISTERED)])
def test_launching_items(cuda: FakeCuda, item: Any) -> None:
    """Each goes through on a device that does right, and finds out one that computes nothing."""
    if "second device" in item.name:
        with pytest.raises(SkipError, match="one device"):
            item.run()
        return
    assert item.run() == {}
    if "no memory" in item.name or "no synchronisation" in item.name:
        return  # these look at other things than results
    cuda.broken = True
    with pytest.raises(AssertionError):
        item.run()


@pytest.mark.parametrize("item", [item for item in tried("attention") if "triton" in item.name], ids=lambda i: i.name)
def test_public_calls_under_capture(cuda: FakeCuda, item: Any) -> None:
    """A fresh CUDA graph needs the kernels loaded, which the plain call before it sees to."""
    assert item.run() == {}
    cuda.broken = True
    with pytest.raises(AssertionError):
        item.run()


def test_a_capture_that_loads_is_found(cuda: FakeCuda) -> None:
    cuda.loaded = _Everything()
    with pytest.raises(AssertionError, match="CaptureError"):
        graph.loading_under_capture("sm80", 1)


class _Everything(set[Hashable]):
    def __contains__(self, key: object) -> bool:
        return True


def test_too_little_memory_for_far_strides(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**10, 2**60))
    with pytest.raises(SkipError, match="memory"):
        graph.far_strides("triton forward", 1)


def test_a_launch_that_takes_memory_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 512)
    with pytest.raises(AssertionError, match="memory from torch"):
        graph.no_memory("sm80", 1)


@pytest.mark.parametrize("kind", ["sm80", "triton decode"])
def test_a_launch_that_waits_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(FakeEvent, "query", lambda self: True)
    with pytest.raises(AssertionError, match="waited"):
        graph.no_synchronisation(kind, 1)


# ---------------------------------------------------------------------------------------------- timing


def _no_flex(*rest: Any) -> Tensor:
    raise RuntimeError("not compiled here")


@pytest.fixture
def no_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "flex", _no_flex)


def test_race(cuda: FakeCuda, no_flex: None) -> None:
    data = timing.race(SHAPE, quick=True)
    assert {"sm80", "sm75", "triton", "faops", "flash"} <= data["times"].keys()
    assert "not compiled here" in data["absent"]["flex"] and "flex" not in data["times"]
    assert data["ratios"]["sm80"]["flash"]["of_pairs"] > 0 and data["ratios"]["triton"]["flash"]["of_pairs"] > 0
    assert data["shape"]["flops"] == 4 * 2 * 2 * 48 * 48 * 32 / 2
    for name, figure in data["times"].items():
        assert figure["n"] >= 2 and data["difference"][name] <= racing.TOLERANCE["float16"]
        assert data["teraflops"][name] == pytest.approx(SHAPE.flops / figure["median"] / 1e12, abs=0.01)


def test_race_with_a_wrong_kernel(cuda: FakeCuda, no_flex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not timed, and what the others took is kept."""
    monkeypatch.setattr(contenders, "launch", lambda kernel, operands: operands.out.fill_(0.5))
    with pytest.raises(WrongError, match="sm80: its result differs") as caught:
        timing.race(SHAPE, quick=True)
    assert "sm80" not in caught.value.data["times"] and "flash" in caught.value.data["times"]


def test_no_triton_on_turing(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "detect", lambda device: known("t4"))
    assert "triton" not in contenders.all_of(SHAPE) and "triton" not in contenders_backward.all_backward(SHAPE)


def test_nan_is_no_agreement(cuda: FakeCuda) -> None:
    truth = torch.ones(3, 2)
    right = truth.view(1, 3, 1, 2)
    made = {"one": lambda: lambda: (right, right), "other": lambda: lambda: (right * torch.nan, right)}
    good, reasons, _ = racing.agreeing(made, (), (truth, truth), 0.1)
    assert good == ["one"] and "differs by nan" in reasons["other"]


@pytest.mark.full
def test_backward_race(cuda: FakeCuda, no_flex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(32, 16, True, "float16")
    shrink_attention(monkeypatch)
    data = triton_timing.backward(shape, quick=True)
    assert {"triton", "triton atomic", "faops", "faops triton", "flash"} <= data["times"].keys()
    assert data["ratios"]["triton"]["flash"]["of_pairs"] > 0 and "not compiled here" in data["absent"]["flex"]
    median = data["times"]["triton"]["median"]
    assert data["teraflops"]["triton"] == pytest.approx(2.5 * shape.flops / median / 1e12, abs=0.01)
    cuda.broken = True
    with pytest.raises(WrongError, match="triton: its result differs"):
        triton_timing.backward(shape, quick=True)


def test_gradient_truth_is_what_autograd_says() -> None:
    q, k, v = (torch.randn(2, 20, 3, 8).requires_grad_() for _ in range(3))
    dout = torch.randn_like(q)
    by_heads = (tensor.transpose(1, 2) for tensor in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(*by_heads, is_causal=True).transpose(1, 2)
    assert torch.allclose(contenders.truth(q, k, v, True), out[-1, :, -1], atol=1e-5)
    expected = torch.autograd.grad(out, (q, k, v), dout)
    for mine, other in zip(contenders.gradient_truth(q, k, v, dout, True), expected):
        assert torch.allclose(mine, other[-1, :, -1], atol=1e-5)


@pytest.mark.full
def test_decode_race(cuda: FakeCuda, no_flex: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page size gives what the dense cache gives, and the rates are those of the cache's bytes."""
    shrink_decode(monkeypatch)
    monkeypatch.setenv("FAOPS_EMULATE", "a100")
    dispatch.forget()
    cache = Cache(2, 32, "float16")
    data = triton_timing.decode(cache, quick=True)
    ours = {f"{name} {kind}" for name in ("raw", "triton") for kind in ("dense", "paged 16", "paged 4")}
    ours |= {"faops", "faops raw", "faops triton"}
    assert ours <= data["times"].keys() and "flash" in data["times"] and ours == data["ratios"].keys()
    assert cache.bytes == 2 * 2 * 32 * 16 * 2
    medians = {name: figures["median"] for name, figures in data["times"].items()}
    copied, read = 2 * cache.bytes / medians["copy"], cache.bytes / medians["flash"]
    assert data["gigabytes"]["copy"] == pytest.approx(copied / 1e9, abs=0.01)
    assert data["of_copy_bandwidth"]["flash"] == pytest.approx(read / copied, abs=1e-4) and read > 0
    cuda.broken = True
    with pytest.raises(WrongError, match=r"raw dense: its result differs.*triton dense: its result differs"):
        triton_timing.decode(cache, quick=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * cache.bytes, 2**60))
    with pytest.raises(SkipError, match="needed"):
        triton_timing.decode(cache, quick=True)


def shrink_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head of one sequence at head dim 16."""
    monkeypatch.setattr(contenders, "TOKENS", 32)
    monkeypatch.setattr(contenders, "WIDTH", 16)


def shrink_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"HEADS": 2, "HEADS_KV": 1, "HEAD_DIM": 16, "PAGE_SIZES": (16, 4)}
    for name, value in small.items():
        monkeypatch.setattr(contenders_decode, name, value)


def ranked(data: dict[str, Any], count: int) -> bool:
    """Whether that many configs are there, the fastest first, the default among them."""
    medians = [one["times"]["median"] for one in data["configs"]]
    default = data["default"] in {one["config"] for one in data["configs"]}
    return len(medians) == count and medians == sorted(medians) and default and not data["absent"]


def test_configs(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CONFIG_LENGTH", 48)
    monkeypatch.setattr(timing, "space", lambda *rest: list(graph.FRESH[:1]))
    data = timing.configs("sm80", 32, quick=True)
    assert ranked(data, 2) and all(one["teraflops"] >= 0 for one in data["configs"])


@pytest.mark.full
def test_configs_of_triton(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, backward and decode: what is ranked is what the kernel offers."""
    shrink_decode(monkeypatch)
    shrink_attention(monkeypatch)
    for module in (timing, triton_timing):
        monkeypatch.setattr(module, "CONFIG_LENGTH", 16)
    for op in ("forward", "backward", "decode"):
        kernel = kernel_of(op)
        monkeypatch.setattr(kernel, "configs", functools.partial(two_configs, kernel, kernel.configs))
    assert ranked(timing.configs("triton", 16, quick=True), 2)
    assert ranked(triton_timing.backward_configs(16, quick=True), 2)
    for page_size in (4, 0):
        assert ranked(triton_timing.decode_configs(Cache(1, 16), page_size, quick=True), 2)


def test_configs_of_raw_decode(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_decode(monkeypatch)
    monkeypatch.setattr(decode_timing, "TUNED", (2, 32))
    kernel = own_kernel(A100)
    monkeypatch.setattr(kernel, "configs", functools.partial(two_configs, kernel, kernel.configs))
    assert ranked(decode_timing.configs(4, quick=True), 2)


def two_configs(kernel: Kernel, configs: Callable[..., list[Config]], *asked: Any) -> list[Config]:
    """The default config and another one."""
    default = kernel.default_config(*asked)
    return [default, next(config for config in configs(*asked) if config != default)]


def test_host_time(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.broken = True  # launches do nothing: this is about the host's time
    monkeypatch.setattr(timing, "HOST_CALLS", 10)
    monkeypatch.setattr(timing, "HOST_TOKENS", 16)
    monkeypatch.setenv("FAOPS_EMULATE", "a100")
    dispatch.forget()
    found = timing.host_time()
    assert found.keys() == {
        "faops", "faops cuda_raw", "faops triton", "sdpa", "sm80 launch", "sm75 launch", "triton launch",
        "triton repeated launch", "triton fn[grid]",
    }  # fmt: skip
    assert all(one["median"] > 0 for one in found.values())


def test_first_call(cuda: FakeCuda) -> None:
    if reason := nvrtc.probe():
        pytest.skip(f"NOT TESTED, no kernel was compiled: {reason}")
    for figures in timing.first_call().values():
        assert 0 < figures["from_disk"] < figures["compile"]


def test_items_of_all_sections() -> None:
    for module in (timing, triton_timing, decode_timing):
        quick, whole = ({item.name for item in module.items(Options(quick=quick))} for quick in (True, False))
        assert quick < whole and len(module.items(Options())) == len(whole)
    for module in (graph, timing, triton_timing, decode_timing):
        with pytest.raises(SkipError, match="emulator"):
            module.items(Options(card="a100"))[0].run()
    assert all(cache.bytes >= 10**9 for cache in triton_timing.CACHES)
