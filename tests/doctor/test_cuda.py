"""Group cuda, on made-up machines and on this one."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from faops.backends.cuda_raw import nvrtc, targets
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import ARCHS, Target
from faops.doctor import cuda, probes
from faops.errors import CompileError

SOURCE = Source("tiny", "tiny", (), 'extern "C" __global__ void tiny() {}', 32)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A machine with the given distributions, driver, NVRTC, programs and GPUs; ``broken`` says why NVRTC fails."""

    def make(
        packages: dict[str, str] | None = None,
        driver: tuple[int, int] | None = None,
        version: tuple[int, int] = (13, 0),
        broken: str = "",
        cupy: bool = True,
        programs: tuple[str, ...] = (),
        output: tuple[bool, str] = (True, "g++ 12.2\nmore"),
    ) -> None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(probes, "installed", lambda name: (packages or {}).get(name))
        monkeypatch.setattr(probes, "program", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(probes, "library", lambda name: driver is not None)
        monkeypatch.setattr(probes, "output_of", lambda command: output)
        monkeypatch.setattr(targets, "driver_cuda_version", lambda: driver)
        monkeypatch.setattr(nvrtc, "installed", lambda: "" if cupy else "CuPy is not installed")
        monkeypatch.setattr(nvrtc, "probe", lambda: broken or nvrtc.installed())
        monkeypatch.setattr(nvrtc, "version", lambda: version)
        monkeypatch.setattr(nvrtc, "supported", lambda: (75, 80, 86, 87, 89, 90))
        monkeypatch.setattr(nvrtc, "library_path", lambda: "/somewhere/libnvrtc.so.13")

    return make


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The targets that a sample source was made for."""
    made: list[Target] = []

    def sample_source(target: Target) -> Source:
        made.append(target)
        return SOURCE

    module = ModuleType("faops.backends.cuda_raw.sample")
    module.sample_source = sample_source  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delattr("faops.backends.cuda_raw.sample", raising=False)
    return made


# --- CuPy -------------------------------------------------------------------------------------------------------------


def test_one_cupy(machine) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"cupy-cuda12x": "14.2.0"})
    assert (cuda.check_cupy().status, cuda.check_cupy().summary) == ("ok", "cupy-cuda12x 14.2.0")


def test_both_cupys(machine) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"cupy-cuda12x": "14.2.0", "cupy-cuda13x": "14.2.0"}, driver=(12, 8))
    result = cuda.check_cupy()
    assert result.status == "warn"
    assert result.summary.startswith("cupy-cuda12x and cupy-cuda13x are installed")
    assert result.fix == "pip uninstall --yes cupy-cuda12x cupy-cuda13x && pip install 'faops[cuda12]'"


def test_cupy_from_elsewhere(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    assert cuda.check_cupy().status == "ok"


def test_no_cupy_and_no_card_is_skipped(machine) -> None:  # type: ignore[no-untyped-def]
    machine(cupy=False)
    for check in (cuda.check_cupy, cuda.check_nvrtc, cuda.check_driver):
        assert check().status == "skipped"
        assert check().summary


@pytest.mark.parametrize(("driver", "extra"), [((12, 2), "cuda12"), ((13, 0), "cuda13"), ((14, 1), "cuda13")])
def test_no_cupy_beside_a_card(machine, driver: tuple[int, int], extra: str) -> None:  # type: ignore[no-untyped-def]
    machine(cupy=False, driver=driver)
    result = cuda.check_cupy()
    assert (result.status, result.fix) == ("warn", f"pip install 'faops[{extra}]'")
    assert cuda.check_driver().summary == "no NVRTC to compare the driver with"


# --- NVRTC and driver -------------------------------------------------------------------------------------------------


def test_nvrtc(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    result = cuda.check_nvrtc()
    assert (result.status, result.summary) == ("ok", "NVRTC 13.0 from /somewhere/libnvrtc.so.13")
    assert result.details == ("knows sm_75, sm_80, sm_86, sm_87, sm_89, sm_90",)


def test_nvrtc_that_cannot_be_loaded(machine) -> None:  # type: ignore[no-untyped-def]
    machine(broken="NVRTC cannot be loaded (OSError: libnvrtc.so.13)")
    result = cuda.check_nvrtc()
    assert (result.status, result.fix) == ("warn", "pip install 'faops[cuda13]'")
    assert "libnvrtc.so.13" in result.summary


@pytest.mark.parametrize(
    ("driver", "status", "words"),
    [
        (None, "skipped", "no NVIDIA driver"),
        ((13, 2), "ok", "the driver for CUDA 13.2 takes what NVRTC 13.1 compiles"),
        ((13, 0), "ok", "the driver for CUDA 13.0 takes"),
        ((12, 8), "warn", "the driver is for CUDA 12.8"),
    ],
)
def test_driver(machine, driver: tuple[int, int] | None, status: str, words: str) -> None:  # type: ignore[no-untyped-def]
    machine(packages={"cupy-cuda13x": "14.2.0"}, driver=driver, version=(13, 1))
    result = cuda.check_driver()
    assert result.status == status
    assert words in result.summary
    if status == "warn":
        assert result.fix == "pip uninstall --yes cupy-cuda13x && pip install 'faops[cuda12]'"
    assert bool(result.details) == (driver in ((13, 0), (12, 8)))


# --- compiling --------------------------------------------------------------------------------------------------------


def test_every_architecture_is_compiled(sample: list[Target]) -> None:
    if reason := nvrtc.probe():
        pytest.skip(f"NOT TESTED, no CUDA kernel was compiled: {reason}")
    result = cuda.check_compile()
    assert result.status == "ok", result
    assert [target.name for target in sample] == [nvrtc.target_of(arch).name for arch in ARCHS]
    assert f"one kernel compiled for {len(ARCHS)} architectures in " in result.summary
    assert all(f"{nvrtc.target_of(arch)} 0." in result.summary for arch in ARCHS)
    assert [detail.split(" ")[0].strip(":") for detail in result.details] == list(ARCHS)
    assert all("registers a thread" in detail for detail in result.details)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, machine):  # type: ignore[no-untyped-def]
    """A compiler that makes nothing, in the given number of seconds by the clock of the check."""
    clock = [0.0]

    def make(seconds: float = 0.1, error: str = "") -> None:
        machine()

        def compile(source: Source, target: Target) -> Compiled:
            if error and target.name == "sm_86":
                raise CompileError(error)
            clock[0] += seconds
            return Compiled(b"", target, "", seconds)

        monkeypatch.setattr(nvrtc, "compile", compile)
        monkeypatch.setattr("faops.doctor.cuda.time.perf_counter", lambda: clock[0])

    return make


def test_what_the_compiler_does_not_know_is_compiled_to_ptx(compiler, sample: list[Target]) -> None:  # type: ignore[no-untyped-def]
    compiler()
    assert "sm_120 (as compute_90): 0.10 s" in cuda.check_compile().details


def test_a_kernel_that_does_not_compile_fails(compiler, sample: list[Target]) -> None:  # type: ignore[no-untyped-def]
    compiler(error="tiny does not compile\ntiny.cu(1): error")
    result = cuda.check_compile()
    assert (result.status, result.summary) == ("fail", "no kernel can be compiled for sm_86")
    assert result.details == ("tiny does not compile", "tiny.cu(1): error")
    assert result.fix == "pip install --upgrade 'faops[cuda13]'"


def test_a_slow_machine_compiles_for_its_own_card_first(  # type: ignore[no-untyped-def]
    compiler, sample: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(seconds=cuda.BUDGET_SECONDS * 0.6)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (9, 0), (6, 1)][index])
    result = cuda.check_compile()
    assert [target.name for target in sample] == ["sm_90a", "sm_75"]
    assert result.details[-1] == "left out after 15 s: sm_80, sm_86, sm_87, sm_89, sm_100, sm_103, sm_120"
    assert "2 of 9 architectures" in result.summary


# --- the emulator's compiler ------------------------------------------------------------------------------------------


def test_emulator_compiler(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("clang++",))
    assert (cuda.check_emulator().status, cuda.check_emulator().summary) == ("ok", "C++ compiler g++ 12.2")
    machine()
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert (cuda.check_emulator().status, cuda.check_emulator().fix) == ("warn", "sudo apt-get install g++")
    machine(programs=("g++",), output=(False, "cannot execute"))
    assert "does not run: cannot execute" in cuda.check_emulator().summary
    machine(programs=("g++",))
    monkeypatch.setenv("CXX", "icpx")
    assert "CXX=icpx is not there" in cuda.check_emulator().summary
    assert cuda.check_emulator().fix == "unset CXX"


def test_checks_are_all_of_the_group() -> None:
    found = cuda.checks()
    assert {check.group for check in found} == {"cuda"}
    assert len({check.id for check in found}) == len(found) == 6
