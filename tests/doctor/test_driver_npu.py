"""Groups driver and npu, on made-up machines."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from faops.doctor import driver, npu, probes

CARDS = "NVIDIA H200, 570.1, 143771 MiB\nNVIDIA H200, 570.1, 143771 MiB"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A machine with the given programs, libraries, distributions and PyTorch build."""

    def make(
        programs: tuple[str, ...] = (),
        libraries: tuple[str, ...] = (),
        packages: dict[str, str] | None = None,
        output: tuple[bool, str] = (True, CARDS),
        cuda: str | None = None,
        hip: str | None = None,
        available: bool = False,
    ) -> None:
        monkeypatch.setattr(probes, "program", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(probes, "library", lambda name: name in libraries)
        monkeypatch.setattr(probes, "installed", lambda name: (packages or {}).get(name))
        monkeypatch.setattr(probes, "output_of", lambda command: output)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)

    return make


def test_no_gpu_is_skipped(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    assert driver.check_nvidia().status == "skipped"
    assert driver.check_nvidia().summary == "no NVIDIA GPU: the torch backend serves the CPU"
    assert driver.check_cuda().status == "skipped"


def test_driver_lists_cards(machine) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("nvidia-smi",))
    result = driver.check_nvidia()
    assert (result.status, result.summary) == ("ok", "2 NVIDIA GPUs")
    assert result.details == tuple(CARDS.split("\n"))


def test_driver_without_its_tool(machine) -> None:  # type: ignore[no-untyped-def]
    machine(libraries=(driver.LIBRARY,))
    assert driver.check_nvidia().status == "ok"


def test_driver_that_does_not_answer(machine) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("nvidia-smi",), output=(False, "couldn't communicate with the NVIDIA driver"))
    result = driver.check_nvidia()
    assert result.status == "fail"
    assert "couldn't communicate" in result.details[0]
    assert "modprobe" in result.fix


def test_torch_without_cuda_beside_a_driver(machine) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("nvidia-smi",), cuda=None)
    result = driver.check_cuda()
    assert result.status == "warn"
    assert "built without CUDA" in result.summary
    assert "pip install torch" in result.fix


def test_torch_that_finds_no_gpu_tells_why(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("nvidia-smi",), cuda="12.8")

    def unavailable() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    result = driver.check_cuda()
    assert result.status == "fail"
    assert result.details == ("The NVIDIA driver on your system is too old",)


def test_rocm(machine) -> None:  # type: ignore[no-untyped-def]
    machine(hip="6.4")
    assert driver.check_cuda().summary == "PyTorch is built for ROCm 6.4"


@pytest.mark.parametrize(
    ("built", "status"),
    [
        (["sm_80", "sm_90"], "ok"),
        (["sm_80"], "fail"),
        (["sm_70", "compute_80"], "ok"),
        (["sm_100a"], "fail"),
        ([], "fail"),
    ],
)
def test_architectures(machine, monkeypatch: pytest.MonkeyPatch, built: list[str], status: str) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("nvidia-smi",), cuda="12.8", available=True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    result = driver.check_cuda()
    assert result.status == status
    if status == "ok":
        assert result.details == ("cuda:0 NVIDIA H200 (sm_90)",)
    else:
        assert "no code for cuda:0 NVIDIA H200 (sm_90)" in result.summary


def test_packages_only_informs(machine) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"triton": "3.5.0"})
    result = driver.check_packages()
    assert result.status == "ok"
    assert result.summary.startswith("triton 3.5.0, cupy-cuda12x not installed")


def test_no_npu_is_skipped(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    assert npu.check_devices().status == "skipped"


def test_npu_without_its_package(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("npu-smi",))
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    result = npu.check_devices()
    assert (result.status, result.fix) == ("warn", "pip install torch-npu==2.7.1")


def test_npu_package_that_cannot_be_imported(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"torch-npu": "2.7.1"})
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    result = npu.check_devices()
    assert result.status == "fail"
    assert "set_env.sh" in result.fix


@pytest.mark.parametrize(("available", "status"), [(True, "ok"), (False, "fail")])
def test_npu_devices(machine, monkeypatch: pytest.MonkeyPatch, available: bool, status: str) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"torch-npu": "2.7.1"})
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace())
    device = SimpleNamespace(
        is_available=lambda: available, device_count=lambda: 2, get_device_name=lambda index: "Ascend910B3"
    )
    monkeypatch.setattr(torch, "npu", device, raising=False)
    result = npu.check_devices()
    assert result.status == status
    if available:
        assert result.details == ("npu:0 Ascend910B3", "npu:1 Ascend910B3")


def test_probes_never_raise() -> None:
    assert probes.program("no-such-program-anywhere") is None
    assert probes.output_of(["no-such-program-anywhere"])[0] is False
    assert probes.output_of([sys.executable, "-c", "print('hello')"]) == (True, "hello")
    assert probes.output_of([sys.executable, "-c", "import sys; sys.exit('sorry')"]) == (False, "sorry")
    assert probes.library("libnosuchlibrary.so.99") is False
    assert probes.installed("no-such-distribution") is None
    assert probes.installed("torch") is not None


def test_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 0.2)
    ended, said = probes.output_of([sys.executable, "-c", "import time; time.sleep(30)"])
    assert not ended
    assert "timed out" in said
