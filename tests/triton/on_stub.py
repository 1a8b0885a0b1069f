"""Triton's own launch path and ours on a stub of the CUDA driver, and what compiling ahead of time gives.

Run by test_launch.py in a process of its own, in which Triton compiles kernels and takes the stub for a driver:

    python -m pytest --noconftest -p tests.triton.stub_plugin tests/triton/on_stub.py
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from triton.compiler import compiler as triton_compiler

from benchmarks import driver_stub, triton_launch
from benchmarks.harness import Effort
from faops.backends.triton import decode_space, launch, space, versions
from faops.backends.triton.compile import compile_launch
from faops.backends.triton.gates.cases import Case
from faops.backends.triton.launch import Launch, Tensors
from faops.device import known
from faops.errors import CaptureError, CompileError, LaunchError, UnavailableError
from tests.triton import toy
from tests.triton.stub_plugin import STUB

H100 = known("h100")
# Compiled in a fraction of the time that the defaults take, one of which test_benchmark_of_launching launches.
SMALL_TILES = {
    "forward": space.make_config(16, 32, 4, 1),
    "backward": space.make_backward_config(16, 32, 4, 1),
    "decode": decode_space.make_config(16, 16, 4, 1),
}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "_ready", {})
    monkeypatch.setattr(launch, "_compiled", set())
    monkeypatch.setattr(versions, "_broken", {})
    monkeypatch.setattr(launch, "detect", lambda device: H100)
    monkeypatch.setattr(STUB, "stream", driver_stub.STREAM)
    monkeypatch.setattr(STUB, "capturing", False)
    monkeypatch.setattr(STUB, "guarded", [])
    STUB.expect(())
    yield
    STUB.fail(0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Launch, Tensors]:
    """A toy kernel with an argument of every kind."""
    monkeypatch.setattr(launch, "kernel_function", lambda kernel: getattr(toy, kernel))
    numbers = {"size": 32, "odd": 33, "one": 1, "large": 2**40, "scale": 0.5}
    made = Launch("scaled", (3, 2, 1), numbers, {"BLOCK": 64}, {"num_warps": 2, "num_stages": 1})
    return made, (driver_stub.pretended(torch.zeros(256)), None, torch.zeros(256, dtype=torch.float16))


def by_triton(made: Launch, tensors: Tensors) -> driver_stub.Recorded:
    """What the driver is given by Triton's own way of launching. From now on it keeps the arguments of this kernel."""
    STUB.expect(())
    call = made.function()[made.grid]
    kernel = call(*made.arguments(tensors), **made.compiler_options())
    STUB.expect(driver_stub.argument_sizes(kernel))
    call(*made.arguments(tensors), **made.compiler_options())
    return STUB.recorded()


def by_us(made: Launch, tensors: Tensors, key: object = "key") -> driver_stub.Recorded:
    before = STUB.launches
    launch.launch(key, tensors, lambda: made)
    assert STUB.launches == before + 1
    return STUB.recorded()


def never() -> Launch:
    raise AssertionError("a known key is not described again")


def missing() -> list[str]:
    return list(versions.missing(H100))


def launches_of(kernel: str, feature: str) -> list[tuple[Launch, Tensors]]:
    made = Case("sm_90", kernel, 64, "float16", feature, SMALL_TILES[kernel]).launches()
    found = []
    for one, tensors in made:
        assert tensors[0] is not None
        found.append((one, (driver_stub.pretended(tensors[0]), *tensors[1:])))
    return found


@pytest.mark.parametrize(
    ("kernel", "feature"),
    [("forward", "causal"), ("forward", "bias"), ("forward", "varlen"), ("backward", "alibi"), ("decode", "rotary")],
)
def test_the_driver_gets_the_same(kernel: str, feature: str) -> None:
    for made, tensors in launches_of(kernel, feature):
        expected = by_triton(made, tensors)
        assert expected.grid == made.grid and expected.block[0] == 32 * made.options["num_warps"]
        assert len(expected.arguments) > 8 and expected.stream == driver_stub.STREAM
        assert by_us(made, tensors, made.kernel) == expected
        launch.launch(made.kernel, tensors, never)
        assert STUB.recorded() == expected


def test_every_kind_of_argument(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    expected = by_triton(made, tensors)
    values = [int.from_bytes(value, "little") for value in expected.arguments]
    x, y = tensors[0], tensors[2]
    assert x is not None and y is not None
    assert [values[0], values[1], *values[2:5]] == [x.data_ptr(), y.data_ptr(), 32, 33, 2**40]
    assert len(values) == 6  # None and 1 became constants
    assert by_us(made, tensors) == expected


def test_other_tensors_under_the_same_key(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    first = by_us(made, tensors)
    STUB.expect(driver_stub.argument_sizes(by_triton_kernel(made, tensors)))
    first = by_us(made, tensors)
    others = (driver_stub.pretended(torch.ones(256)), None, torch.ones(256, dtype=torch.float16))
    launch.launch("key", others, never)
    second = STUB.recorded()
    assert second.arguments[2:] == first.arguments[2:]
    assert [int.from_bytes(one, "little") for one in second.arguments[:2]] == [
        tensor.data_ptr() for tensor in others if tensor is not None
    ]


def by_triton_kernel(made: Launch, tensors: Tensors) -> Any:
    return made.function()[made.grid](*made.arguments(tensors), **made.compiler_options())


def test_stream_is_read_anew(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    assert by_us(made, tensors).stream == driver_stub.STREAM
    STUB.stream = 77
    assert by_us(made, tensors).stream == 77


def test_keys_of_two_devices_are_apart(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    by_us(made, tensors)
    STUB.guarded.clear()
    by_us(made, tensors)
    assert STUB.guarded == []  # device 0 is the current one
    assert tensors[0] is not None
    built = []
    other = (driver_stub.pretended(tensors[0], 1), *tensors[1:])
    launch.launch("key", other, lambda: built.append(1) or made)
    assert built == [1] and set(STUB.guarded) == {1}


def test_profilers_are_told(small: tuple[Launch, Tensors], monkeypatch: pytest.MonkeyPatch) -> None:
    made, tensors = small
    by_us(made, tensors)
    heard: list[object] = []
    hook = lambda data: heard.append(data.get()["name"])  # noqa: E731
    if not hasattr(triton, "knobs"):
        monkeypatch.setattr(triton_compiler.CompiledKernel, "launch_enter_hook", hook)
    elif hasattr(triton.knobs.runtime.launch_enter_hook, "calls"):
        monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [hook])
    else:
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    expected = by_us(made, tensors)
    assert heard == ["scaled"]
    monkeypatch.undo()
    monkeypatch.setattr(launch, "kernel_function", lambda kernel: getattr(toy, kernel))
    assert by_us(made, tensors) == expected and heard == ["scaled"]


def test_capture(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    STUB.capturing = True
    with pytest.raises(CaptureError, match="run the call once before"):
        launch.launch("key", tensors, lambda: made)
    STUB.capturing = False
    by_us(made, tensors)
    STUB.capturing = True
    by_us(made, tensors)
    assert missing() == []


def test_refused_launch(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    by_us(made, tensors)
    STUB.fail(700)
    with pytest.raises(LaunchError, match=r"scaled.*told to fail"):
        launch.launch("key", tensors, never)
    assert missing() == []


def test_kernel_that_does_not_compile(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    broken = replace(made, constants={"BLOCK": 63})  # tl.arange wants a power of two
    by_us(made, tensors)
    with pytest.raises(UnavailableError, match="scaled does not compile"):
        launch.launch("other", tensors, lambda: broken)
    assert missing() == []  # it has run here with another config
    launch._compiled.clear()
    with pytest.raises(UnavailableError, match="scaled does not compile"):
        launch.launch("other", tensors, lambda: broken)
    assert len(missing()) == 1 and "scaled does not compile" in missing()[0]


def test_config_that_asks_for_too_much(small: tuple[Launch, Tensors]) -> None:
    _, tensors = small
    made = Launch("shared", (1, 1, 1), {}, {"BLOCK": 64}, {"num_warps": 4, "num_stages": 1})
    forget = getattr(getattr(triton_compiler, "max_shared_mem", None), "cache_clear", lambda: None)
    forget()
    STUB.limit_shared(1024)
    try:
        with pytest.raises(UnavailableError, match="OutOfResources"):
            launch.launch("key", tensors[:1], lambda: made)
    finally:
        forget()
        STUB.limit_shared(227 << 10)
    assert missing() == []


def test_missing_argument(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    with pytest.raises(KeyError, match="BLOCK"):
        replace(made, constants={}).arguments(tensors)


def test_threads_share_one_kernel(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    before, errors = STUB.launches, list[BaseException]()

    def work() -> None:
        try:
            for _ in range(50):
                launch.launch("key", tensors, lambda: made)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and STUB.launches == before + 200


def test_benchmark_of_launching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "BATCH_SECONDS", 1e-4)
    effort = Effort(0.0, min_rounds=2, warmup_rounds=0)
    found = triton_launch.measure("plain", triton_launch.PLAIN, stubbed=True, effort=effort)
    assert set(found["calls"]) == set(triton_launch.CALLS)
    assert all(len(one["samples"]) == 2 and one["min"] > 0 for one in found["calls"].values())
    assert found["calls"]["launch"]["min"] < found["calls"]["triton"]["min"]
    launched = []
    for call in triton_launch.calls(triton_launch.PLAIN, stubbed=True).values():
        before = STUB.launches
        call()
        assert STUB.launches == before + 1
        launched.append(replace(STUB.recorded(), arguments=()))
    assert launched[0] == launched[1] == launched[2]


# ---------------------------------------------------------------------------------------------- ahead of time


def test_compiled_ahead_of_time_as_at_a_launch(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    kernel = by_triton_kernel(made, tensors)
    binary = compile_launch(made, tensors, "sm_90")
    assert binary.cubin == kernel.asm["cubin"] and binary.ptx == kernel.asm["ptx"]
    assert ".target sm_90a" in binary.ptx and binary.threads == 64 and binary.spill_bytes == 0
    assert 0 < binary.registers <= 255 and binary.seconds > 0
    by_us(made, tensors)  # the driver is the stub again


def test_alignment_and_sizes_specialise(small: tuple[Launch, Tensors]) -> None:
    made, tensors = replace(small[0], constants={"BLOCK": 256}), small[1]  # four elements a thread, hence vectors
    x = torch.zeros(260)
    aligned = compile_launch(made, tensors, "sm_80").ptx
    assert aligned != compile_launch(made, (x[1:], *tensors[1:]), "sm_80").ptx
    assert aligned == compile_launch(replace(made, numbers={**made.numbers, "size": 64}), tensors, "sm_80").ptx
    assert aligned != compile_launch(replace(made, numbers={**made.numbers, "size": 65}), tensors, "sm_80").ptx


def test_registers_and_spills() -> None:
    tensors = (torch.zeros(128 * 128),)
    made = Launch("crowded", (1, 1, 1), {}, {"BLOCK": 64}, {"num_warps": 1, "num_stages": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "kernel_function", lambda kernel: getattr(toy, kernel))
        assert compile_launch(made, tensors, "sm_80").spill_bytes == 0
        wide = compile_launch(replace(made, constants={"BLOCK": 128}), tensors, "sm_80")
    assert wide.spill_bytes > 0 and wide.registers > 0


def test_error_tells_the_cause(small: tuple[Launch, Tensors]) -> None:
    made, tensors = small
    with pytest.raises(CompileError, match=r"scaled does not compile for sm_80: .*power of 2") as caught:
        compile_launch(replace(made, constants={"BLOCK": 63}), tensors, "sm_80")
    assert "def scaled" in caught.value.log
