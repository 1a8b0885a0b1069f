"""Groups python and torch, on made-up machines."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from faops.doctor import probes
from faops.doctor import python as python_group
from faops.doctor import torch as torch_group
from faops.doctor.check import Result

ROOT = Path(__file__).parents[2]


def _version(monkeypatch: pytest.MonkeyPatch, *parts: int) -> Result:
    monkeypatch.setattr(sys, "version_info", (*parts, 0, "final", 0))
    monkeypatch.setattr("platform.python_version", lambda: ".".join(map(str, parts)))
    return python_group.check_version()


@pytest.mark.parametrize(("parts", "status"), [((3, 9), "fail"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "warn")])
def test_python_version(monkeypatch: pytest.MonkeyPatch, parts: tuple[int, int], status: str) -> None:
    result = _version(monkeypatch, *parts)
    assert result.status == status
    assert f"Python {parts[0]}.{parts[1]}" in result.summary
    assert bool(result.fix) == (status != "ok")


def test_minimum_versions_are_those_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    python = re.search(r'requires-python = ">=(\d+)\.(\d+)"', text)
    torch_requirement = re.search(r'"torch>=(\d+)\.(\d+)"', text)
    assert python is not None
    assert torch_requirement is not None
    assert tuple(map(int, python.groups())) == python_group.MINIMUM
    assert tuple(map(int, torch_requirement.groups())) == torch_group.MINIMUM
    newest = ".".join(map(str, python_group.NEWEST_TESTED))
    assert f"Programming Language :: Python :: {newest}" in text


@pytest.mark.parametrize(("system", "status"), [("Linux", "ok"), ("Darwin", "ok"), ("Windows", "warn")])
def test_platform(monkeypatch: pytest.MonkeyPatch, system: str, status: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    assert python_group.check_platform().status == status


def test_32_bit_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    result = python_group.check_platform()
    assert result.status == "fail"
    assert "32-bit" in result.summary


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2.5.1", "fail"),
        ("1.13.0+cu117", "fail"),
        ("2.6.0", "ok"),
        ("2.13.0+cpu", "ok"),
        ("3.0.0a1", "ok"),
        ("?", "fail"),
    ],
)
def test_torch_version(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    result = torch_group.check_version()
    assert result.status == status
    assert version in result.summary
    assert result.fix == ("" if status == "ok" else "pip install --upgrade 'torch>=2.6'")


def test_compute() -> None:
    assert torch_group.check_compute().status == "ok"


def test_wrong_compute_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = torch.Tensor.__matmul__

    def wrong(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return usual(left, right) + (left.dtype == torch.bfloat16)

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    result = torch_group.check_compute()
    assert result.status == "fail"
    assert "bfloat16" in result.summary


@pytest.mark.parametrize(("threads", "status"), [(1, "ok"), (4, "ok"), (5, "warn")])
def test_threads(monkeypatch: pytest.MonkeyPatch, threads: int, status: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("faops.doctor.torch.detect", lambda name: _FourCores())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    result = torch_group.check_threads()
    assert result.status == status
    assert result.details == ("OMP_NUM_THREADS=7",)
    assert result.fix == ("" if status == "ok" else "export OMP_NUM_THREADS=4")


class _FourCores:
    units = 4


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A machine with the given programs, one of which prints a version, and Python's headers."""
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))

    def has(*programs: str, runs: bool = True) -> None:
        monkeypatch.setattr(probes, "program", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(probes, "output_of", lambda command: (runs, f"{command[0]} 12.2\nmore"))

    return has


def test_compiler_is_found(compiler) -> None:  # type: ignore[no-untyped-def]
    compiler("clang++")
    result = torch_group.check_compile()
    assert (result.status, result.summary) == ("ok", "C++ compiler /usr/bin/clang++ 12.2")


@pytest.mark.parametrize(
    ("system", "fix"), [("Linux", "sudo apt-get install g++"), ("Darwin", "xcode-select --install")]
)
def test_no_compiler(compiler, monkeypatch: pytest.MonkeyPatch, system: str, fix: str) -> None:  # type: ignore[no-untyped-def]
    compiler()
    monkeypatch.setattr("platform.system", lambda: system)
    result = torch_group.check_compile()
    assert (result.status, result.fix) == ("warn", fix)


def test_named_compiler_that_is_not_there(compiler, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    compiler("g++")
    monkeypatch.setenv("CXX", "icpx")
    assert "CXX=icpx is not there" in torch_group.check_compile().summary


def test_compiler_that_does_not_run(compiler) -> None:  # type: ignore[no-untyped-def]
    compiler("g++", runs=False)
    result = torch_group.check_compile()
    assert result.status == "warn"
    assert "does not run" in result.summary


def test_missing_headers(compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    compiler("g++")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (tmp_path / "Python.h").unlink()
    result = torch_group.check_compile()
    assert (result.status, result.fix) == ("warn", "sudo apt-get install python3-dev")
