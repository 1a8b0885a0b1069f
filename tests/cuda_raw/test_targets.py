"""Which target an architecture gets, and which driver takes what."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from faops.architectures import ARCHITECTURES
from faops.backends.cuda_raw import targets
from faops.backends.cuda_raw.targets import choose, driver_reason, unsupported
from faops.errors import ArgumentError

CUDA_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
CUDA_12_4 = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)


def test_every_architecture_of_the_table_gets_its_own_machine_code() -> None:
    chosen = {arch: choose(arch, CUDA_13) for arch in targets.ARCHS}
    assert {arch: target.name for arch, target in chosen.items()} == {
        "sm_75": "sm_75",
        "sm_80": "sm_80",
        "sm_86": "sm_86",
        "sm_87": "sm_87",
        "sm_89": "sm_89",
        "sm_90": "sm_90a",
        "sm_100": "sm_100",
        "sm_103": "sm_103",
        "sm_120": "sm_120",
    }
    assert {target.kind for target in chosen.values()} == {"cubin"}
    assert set(targets.ARCHS) == {arch for arch in ARCHITECTURES if arch.startswith("sm_")}


@pytest.mark.parametrize(
    ("arch", "supported", "expected"),
    [
        ("sm_130", CUDA_13, "compute_121"),  # newer than all
        ("sm_101", CUDA_13, "compute_100"),  # an unknown minor version
        ("sm_95", CUDA_13, "compute_90"),  # never compute_90a, which runs on sm_90 alone
        ("sm_88", CUDA_12_4, "compute_87"),
        ("sm_120", CUDA_12_4, "compute_90"),
        ("sm_121", CUDA_13, "sm_121"),  # not in our table, but the compiler knows it
    ],
)
def test_architectures_that_the_compiler_or_the_table_does_not_know(
    arch: str, supported: tuple[int, ...], expected: str
) -> None:
    target = choose(arch, supported)
    assert (target.name, target.kind) == (expected, "ptx" if expected.startswith("compute") else "cubin")
    assert not unsupported(arch)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("sm_61", "compute capability 6.1; the kernels need 7.5 (Turing) or newer"),
        ("sm_70", "compute capability 7.0"),
        ("910B", "not an NVIDIA architecture"),
        ("x86_64-avx512", "not an NVIDIA architecture"),
    ],
)
def test_what_no_compiler_can_help(arch: str, words: str) -> None:
    assert words in unsupported(arch)
    with pytest.raises(ArgumentError, match="arch: got") as caught:
        choose(arch, CUDA_12_4)
    assert words in str(caught.value)


def test_an_architecture_that_the_compiler_has_dropped() -> None:
    with pytest.raises(ArgumentError, match=r"installed NVRTC compiles for \(sm_80, sm_90\)"):
        choose("sm_75", (80, 90))


@pytest.mark.parametrize(
    ("nvrtc", "driver", "cubin", "ptx"),
    [
        ((13, 0), (13, 0), True, True),
        ((13, 1), (13, 0), True, False),  # minor version compatibility is for machine code
        ((13, 0), (13, 1), True, True),
        ((12, 9), (13, 0), True, True),
        ((13, 0), (12, 9), False, False),
        ((12, 9), (11, 8), False, False),
    ],
)
def test_drivers(nvrtc: tuple[int, int], driver: tuple[int, int], cubin: bool, ptx: bool) -> None:
    assert (driver_reason(nvrtc, driver) == "") == cubin
    assert (driver_reason(nvrtc, driver, kind="ptx") == "") == ptx


def test_reasons_about_drivers_name_both_versions() -> None:
    reason = driver_reason((13, 1), (12, 8))
    assert "driver is for CUDA 12.8" in reason
    assert "NVRTC 13.1" in reason
    assert "580" in reason
    assert "does not take PTX of NVRTC 13.1" in driver_reason((13, 1), (13, 0), kind="ptx")
    assert driver_reason((15, 0), (14, 9)).endswith("needs one for CUDA 15.0 or newer")


@pytest.fixture
def fresh_driver() -> object:
    targets.driver_cuda_version.cache_clear()
    yield
    targets.driver_cuda_version.cache_clear()


@pytest.mark.usefixtures("fresh_driver")
@pytest.mark.parametrize(("status", "expected"), [(0, (12, 8)), (34, None)])
def test_driver_version(monkeypatch: pytest.MonkeyPatch, status: int, expected: tuple[int, int] | None) -> None:
    def query(number: object) -> int:
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = 12080  # type: ignore[arg-type]
        return status

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=query))
    assert targets.driver_cuda_version() == expected


@pytest.mark.usefixtures("fresh_driver")
def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert targets.driver_cuda_version() is None
