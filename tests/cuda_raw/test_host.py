"""What a machine lacks is a reason of `check`, so that explain shows it and a call goes to another kernel."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import faops
from faops import registry
from faops.backends.cuda_raw import host, nvrtc, targets
from faops.device import DeviceProfile, known
from faops.problem import parse_shape
from faops.registry import Rejected

PROBLEM = parse_shape("sq=256,h=8,d=64,dtype=fp16,causal=1")


def reasons(device: DeviceProfile, kernel: str = "sm80_forward") -> tuple[str, ...]:
    found = registry.get(f"cuda_raw.{kernel}")
    assert found is not None
    decision = found.check(PROBLEM, device)
    return decision.reasons if isinstance(decision, Rejected) else ()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> DeviceProfile:
    """An A100 that is in this machine, with a driver that takes everything."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (99, 0))
    return known("a100")


def test_a_complete_machine_has_no_reason(card: DeviceProfile) -> None:
    pytest.importorskip("cupy_backends", reason="CuPy is not installed: what it compiles cannot be tested")
    assert reasons(card) == ()


def test_no_cupy(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = importlib.util.find_spec
    hidden = lambda name, package=None: None if name == "cupy_backends" else usual(name, package)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    (reason,) = reasons(card)
    assert "CuPy is not installed" in reason and "faops[cuda" in reason


def test_driver_older_than_what_nvrtc_makes(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "packaged_version", lambda: (13, 0))
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (12, 4))
    (reason,) = reasons(card)
    assert "12.4" in reason and "13.0" in reason


def test_newer_minor_version_is_no_reason(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "packaged_version", lambda: (12, 9))
    monkeypatch.setattr(targets, "driver_cuda_version", lambda: (12, 4))
    assert reasons(card) == ()


def test_packaged_version_is_that_of_the_wheel() -> None:
    pytest.importorskip("cupy_backends", reason="CuPy is not installed: it has no NVRTC to ask")
    assert nvrtc.packaged_version() in (nvrtc.version(), None)


def test_a_failed_launch_is_remembered(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(host._broken, card.name, "CUDADriverError: no kernel image")
    assert "no kernel image" in reasons(card)[-1]
    assert reasons(known("4090")) == ()


def test_old_card(card: DeviceProfile) -> None:
    pascal = DeviceProfile("nvidia", "pascal", "sm_61", "NVIDIA GeForce GTX 1080", "cuda", 20)
    assert any("7.5" in reason for reason in reasons(pascal))
    assert any("7.5" in reason for reason in reasons(pascal, "sm75_forward"))


@pytest.mark.parametrize("name", ["910b", "cpu"])
def test_no_nvidia_card(name: str) -> None:
    (reason,) = reasons(known(name))
    assert "NVIDIA" in reason


def test_no_compiler_for_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_EMULATE", "1")
    assert reasons(known("cpu")) == ()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    found = reasons(known("cpu"))
    assert len(found) == 1 and "/nowhere/c++" in found[0]
    q = torch.randn(1, 8, 2, 16)
    assert faops.attention(q, q, q).shape == q.shape  # another kernel serves the call


def test_unknown_card_to_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_EMULATE", "gtx9000")
    with pytest.raises(faops.errors.SettingsError, match=r"gtx9000.*a100"):
        reasons(known("cpu"))


def test_float32_and_the_rest_are_left_to_others() -> None:
    for dtype, word in (("float32", "tf32"), ("float64", "float64"), ("float8_e4m3fn", "float8")):
        kernel = registry.get("cuda_raw.sm80_forward")
        assert kernel is not None
        decision = kernel.check(parse_shape(f"sq=64,h=2,d=64,dtype={dtype}"), known("a100"))
        assert isinstance(decision, Rejected) and word in decision.reasons[0]


def test_turing_and_bfloat16() -> None:
    kernel = registry.get("cuda_raw.sm75_forward")
    assert kernel is not None
    decision = kernel.check(parse_shape("sq=64,h=2,d=64,dtype=bf16"), known("t4"))
    assert isinstance(decision, Rejected) and "range" in decision.reasons[0]
