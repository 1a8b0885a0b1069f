"""The launcher, without a card: what it tells the driver, when, and what becomes of the driver's refusals."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import faops
from benchmarks.gpu.attention import Call, Trial, check_result, prepare
from faops import dispatch, execute
from faops.backends.cuda_raw import decode_parts, host, launch, targets
from faops.backends.cuda_raw.params import FORWARD, Struct
from faops.backends.cuda_raw.source import CSRC
from faops.backends.cuda_raw.tiles import make_config
from faops.device import known
from faops.errors import CaptureError, FaopsWarning, LaunchError, NoKernelError, UnavailableError
from faops.operands import Operands
from tests.cuda_raw.fake_driver import STREAM, STRUCTS, FakeDriver, c_struct, install, on_card

CPU, A100 = torch.device("cpu"), known("a100")
SHAPE = {"seqlen_q": 70, "seqlen_k": 90, "head_dim": 32, "head_dim_v": 48}
ALL = ("alibi_batch", "bias", "causal", "dropout", "mask", "sinks", "varlen")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return install(monkeypatch)


def make_call(*features: str, tile_n: int = 32, head_dim: int = 32, index: int = 0) -> Call:
    """A random call on tensors that say they are on card ``index``."""
    config = make_config(64, tile_n, 4, 1, False)
    shape = {**SHAPE, "head_dim": head_dim}
    trial = Trial("sm80", torch.float16, tuple(sorted(features)), config, shape, random.getrandbits(31))
    call = prepare(trial, CPU, A100)
    return Call(
        call.case, call.tensors, call.seed, call.kernel, call.operands._replace(q=on_card(call.operands.q, index))
    )


def go(call: Call) -> None:
    launch.launch(call.kernel, call.operands)


# ---------------------------------------------------------------------------------------------- one launch


def test_parameters_are_the_struct_of_the_call(driver: FakeDriver) -> None:
    call = make_call("alibi_batch", "bias", "gqa", "mask", "sinks", "window")
    go(call)
    (launched,) = driver.launched
    found, operands, case = launched.params, call.operands, call.case
    for name, tensor in zip(FORWARD.pointers, operands):
        assert getattr(found, name) == (0 if tensor is None else tensor.data_ptr()), name
    for name in ("q", "k", "v", "out"):
        tensor = getattr(operands, name)
        strides = [getattr(found, f"{name}_{axis}") for axis in ("batch", "row", "head")]
        assert strides == list(tensor.stride()[:3]), name
    assert operands.lse is not None
    assert [found.lse_batch, found.lse_head] == list(operands.lse.stride()[:2])
    assert (found.batch, found.heads, found.group) == (2, 6, 3)
    assert (found.seqlen_q, found.seqlen_k, found.head_dim, found.head_dim_v) == (70, 90, 32, 48)
    assert found.alibi_batch == 6
    for name in ("bias", "mask"):
        matrix = case.options[name]
        wanted = [0 if size == 1 else stride for size, stride in zip(matrix.shape, matrix.stride())]
        assert [getattr(found, f"{name}_{axis}") for axis in ("batch", "head", "row", "key")] == wanted
    assert found.scale == pytest.approx(32**-0.5) and found.softcap == 0 and found.keep_scale == 1


def test_geometry_of_a_launch(driver: FakeDriver) -> None:
    call = make_call()
    go(call)
    (launched,) = driver.launched
    assert launched.grid == (call.kernel.grid, 1, 1) and call.kernel.grid == 2 * 2 * 4
    assert launched.block == (128, 1, 1)
    assert launched.shared_bytes == call.kernel.shared_bytes > 0
    assert launched.stream == STREAM and launched.extra == 0
    assert driver.attributes == []


def test_dropout_and_varlen_arrive(driver: FakeDriver) -> None:
    call = make_call(*ALL)
    go(call)
    found = driver.launched[0].params
    assert all(getattr(found, name) for name in FORWARD.pointers)
    assert found.total_q == call.operands.q.shape[0] and found.q_batch == found.lse_batch == 0
    dropped = call.case.options["dropout_p"]
    assert found.keep_scale == pytest.approx(1 / (1 - dropped)) and found.drop_below == pytest.approx(dropped * 2**32)
    assert driver.launched[0].grid[0] == call.kernel.grid


@pytest.mark.usefixtures("emulator_here")
@pytest.mark.parametrize("features", [("causal", "gqa"), ALL], ids=str)
def test_what_arrives_computes_the_right_thing(driver: FakeDriver, features: tuple[str, ...]) -> None:
    """The launched bytes, run in the emulator from the addresses that they hold."""
    call = make_call(*features)
    driver.memory = [
        (tensor, name, name in ("out", "lse"))
        for name, tensor in zip(FORWARD.pointers, call.operands)
        if tensor is not None
    ]
    go(call)
    check_result(call, str(features))


# ---------------------------------------------------------------------------------------------- several launches


def test_stream_is_read_at_each_launch(driver: FakeDriver) -> None:
    call = make_call()
    for stream in (1, 2, 3):
        driver.stream = stream
        go(call)
    assert [launched.stream for launched in driver.launched] == [1, 2, 3]


def test_module_is_loaded_once_a_device_and_kernel(driver: FakeDriver) -> None:
    for _ in range(3):
        go(make_call())
    assert len(driver.loaded) == 1 and len({launched.function for launched in driver.launched}) == 1
    go(make_call("causal"))
    assert len(driver.loaded) == 2
    go(make_call(index=1))
    assert len(driver.loaded) == 3 and driver.loaded[2] == driver.loaded[0]
    assert driver.launched[-1].stream == STREAM + 1 and driver.current == 0
    go(make_call())
    assert len(driver.loaded) == 3 and driver.launched[-1].stream == STREAM


def test_threads_share_what_is_loaded(driver: FakeDriver) -> None:
    """Eight threads at once: one loads, all launch, each with a context of its own made current."""
    calls = [make_call() for _ in range(8)]
    threads = [threading.Thread(target=go, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.loaded) == 1 and len(driver.launched) == 8  # a launch without a context would have raised
    addresses = {launched.params.q for launched in driver.launched}
    assert addresses == {call.operands.q.data_ptr() for call in calls}


def test_context_is_made_current_once_a_thread(driver: FakeDriver) -> None:
    for _ in range(3):
        go(make_call())
    assert driver.contexts == [(threading.get_ident(), 0)]


@pytest.mark.parametrize(("head_dim", "asks"), [(64, False), (256, True)])
def test_large_shared_memory_is_asked_for(driver: FakeDriver, head_dim: int, asks: bool) -> None:
    """Up to 48 KiB a block has without asking."""
    call = make_call(head_dim=head_dim, tile_n=64)
    assert (call.kernel.shared_bytes > launch.DEFAULT_SHARED) == asks
    go(call)
    attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    wanted = [(driver.launched[0].function, attribute, call.kernel.shared_bytes)] if asks else []
    assert driver.attributes == wanted


# ---------------------------------------------------------------------------------------------- refusals


def test_loading_under_capture_is_refused(driver: FakeDriver) -> None:
    driver.capturing = True
    with pytest.raises(CaptureError, match=r"captured.* run the call once before"):
        go(make_call())
    assert not driver.loaded and not driver.launched
    driver.capturing = False
    go(make_call())
    driver.capturing = True
    go(make_call())
    assert len(driver.loaded) == 1 and len(driver.launched) == 2


@pytest.mark.parametrize("function", ["moduleLoadData", "moduleGetFunction", "funcSetAttribute"])
def test_driver_error_while_loading(driver: FakeDriver, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (13, 1))
    driver.fail = function
    with pytest.raises(UnavailableError, match=f"sm_80.*CUDA_ERROR_FROM_{function}"):
        go(make_call(head_dim=256, tile_n=64))
    assert not driver.launched
    driver.fail = ""
    go(make_call(head_dim=256, tile_n=64))  # nothing half loaded is kept
    assert len(driver.launched) == 1


def test_driver_error_while_launching(driver: FakeDriver) -> None:
    driver.fail = "launchKernel"
    with pytest.raises(LaunchError, match=r"refused to launch .*CUDA_ERROR_FROM_launchKernel"):
        go(make_call())
    driver.fail = ""
    go(make_call())
    assert len(driver.loaded) == 1 and len(driver.launched) == 1


def test_driver_error_of_an_old_driver(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (12, 4))
    driver.fail = "moduleLoadData"
    with pytest.raises(UnavailableError) as caught:
        go(make_call())
    assert "12.4" in str(caught.value) and "13.0" in str(caught.value) and "580" in str(caught.value)


# ---------------------------------------------------------------------------------------------- the call around it


@pytest.fixture
def a_card(driver: FakeDriver, kept_cubins: None, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """Tensors of the card are planned for as on an A100; nothing has failed on it yet."""
    monkeypatch.setattr(execute, "detect", lambda device: A100)
    monkeypatch.setattr(host, "detect", lambda device: A100)
    monkeypatch.setattr(host, "_broken", {})
    monkeypatch.setattr(host, "_specialised", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (13, 1))
    monkeypatch.setattr(launch.nvrtc, "installed", lambda: "")
    dispatch.forget()
    return driver


def first(backend: str | None = None) -> tuple[Tensor, Tensor]:
    """A call of faops.attention on the card that raw kernels of a small window serve best, and what it should give."""
    q, k, v = (torch.randn(1, 20, 2, 16).half() for _ in range(3))
    out = faops.attention(on_card(q), on_card(k), on_card(v), causal=True, backend=backend)
    return out, faops.attention(q, k, v, causal=True)


@pytest.fixture
def preferred(a_card: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The raw kernel is the first choice."""
    kernel = faops.registry.get("cuda_raw.sm80_forward")
    assert kernel is not None
    monkeypatch.setattr(kernel, "priority", 1000, raising=False)
    dispatch.forget()
    return a_card


def test_fallback_in_the_call(preferred: FakeDriver) -> None:
    """The kernel that cannot load is replaced once, with a warning; later calls do not try it again."""
    preferred.fail = "moduleLoadData"
    with pytest.warns(
        FaopsWarning, match=r"cuda_raw\.sm80_forward cannot run here.*CUDA_ERROR_FROM_moduleLoadData"
    ) as said:
        out, expected = first()
    assert len([one for one in said if issubclass(one.category, FaopsWarning)]) == 1
    torch.testing.assert_close(out.as_subclass(Tensor), expected, atol=2e-3, rtol=2e-3)
    preferred.fail = ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, expected = first()
    torch.testing.assert_close(out.as_subclass(Tensor), expected, atol=2e-3, rtol=2e-3)
    assert not preferred.loaded and not preferred.launched


def test_forced_backend_raises(a_card: FakeDriver) -> None:
    a_card.fail = "moduleLoadData"
    for _ in range(2):
        with pytest.raises(NoKernelError, match=r"cuda_raw\.sm80_forward: .*CUDA_ERROR_FROM_moduleLoadData"):
            first("cuda_raw.sm80_forward")


def test_first_call_under_capture(preferred: FakeDriver) -> None:
    """It is refused, no other kernel takes its place, and the kernel serves the next call."""
    preferred.capturing = True
    with pytest.raises(CaptureError, match="run the call once before"):
        first()
    preferred.capturing = False
    first()
    assert len(preferred.launched) == 1


def test_call_reaches_the_driver(preferred: FakeDriver) -> None:
    first()
    (launched,) = preferred.launched
    assert launched.params.seqlen_q == 20 and launched.params.window_right == 0 and not launched.params.lse


# ---------------------------------------------------------------------------------------------- the struct


OFFSETS = """#include <cstdio>
#include <cstddef>
#include "params.cuh"
int main() {{
{lines}
    std::printf("sizeof %zu\\n", sizeof(Params));
}}
"""


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.pointers[0])
def test_struct_is_what_a_compiler_makes_of_the_header(struct: Struct, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("NOT TESTED, the parameter struct was not compiled: there is no C++ compiler")
    types = "using u8 = unsigned char; using u16 = unsigned short; using u32 = unsigned;\n"
    types += "using u64 = unsigned long long; using i64 = long long;\n"
    assert all(
        line in (CSRC / "ptx.cuh").read_text() for line in ("using u32 = unsigned int;", "using i64 = long long;")
    )
    (tmp_path / "ptx.cuh").write_text(types)
    (tmp_path / "params.cuh").write_text(struct.header())
    names = [name for name, _ in struct.fields]
    lines = "\n".join(f'    std::printf("{name} %zu\\n", offsetof(Params, {name}));' for name in names)
    (tmp_path / "offsets.cpp").write_text(OFFSETS.format(lines=lines))
    program = tmp_path / "offsets"
    subprocess.run([compiler, "-std=c++17", str(tmp_path / "offsets.cpp"), "-o", str(program)], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    compiled = {name: int(offset) for name, offset in map(str.split, said.splitlines())}
    assert compiled.pop("sizeof") == struct.size
    assert compiled == {name: getattr(c_struct(struct), name).offset for name in names}
    assert [compiled[name] for name in struct.pointers] == list(struct.pointer_offsets)
    # Every member, and no other, is where pack puts it, and is as wide as what pack writes.
    for name in names:
        found = c_struct(struct).from_buffer_copy(struct.pack({name: 1}))
        assert [other for other in names if getattr(found, other)] == [name]


def test_pointers_stand_in_the_order_of_the_operands() -> None:
    assert Operands._fields == FORWARD.pointers
    call = make_call(*ALL)
    assert None not in call.operands
    found = c_struct(FORWARD).from_buffer_copy(call.kernel.packed(call.operands))
    addresses = [getattr(found, name) for name in FORWARD.pointers]
    assert addresses == [tensor.data_ptr() for tensor in call.operands if tensor is not None]
    assert len(set(addresses)) == len(addresses)


def test_what_a_kernel_may_write() -> None:
    assert FORWARD.written == {"out", "lse"}
    assert decode_parts.APPEND.written == {"k_cache", "v_cache"}
    assert decode_parts.COMBINE.written == {"out", "lse"}
