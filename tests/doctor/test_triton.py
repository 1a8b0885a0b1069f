"""Group triton, on made-up machines and on this one."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path

import pytest
import torch

from faops.backends.triton import versions
from faops.doctor import probes, triton


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A machine with this Triton, and with a card of this capability; ``output`` is what programs print."""

    def make(
        version: tuple[int, ...] | None = (3, 9, 0),
        card: tuple[int, int] | None = None,
        programs: tuple[str, ...] = (),
        output: tuple[bool, str] = (True, "gcc 12.2\nmore"),
    ) -> list[list[str]]:
        commands: list[list[str]] = []

        def output_of(command: list[str], seconds: float = 0) -> tuple[bool, str]:
            commands.append(command)
            return output

        for name in ("CC", "TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(versions, "installed", lambda: version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(probes, "program", lambda name: f"/usr/bin/{name}" if name in programs else None)
        monkeypatch.setattr(probes, "output_of", output_of)
        return commands

    return make


# --- the version ------------------------------------------------------------------------------------------------------


def test_a_triton_that_suits(machine) -> None:  # type: ignore[no-untyped-def]
    machine(version=(3, 9, 0))
    assert (triton.check_version().status, triton.check_version().summary) == ("ok", "Triton 3.9.0")


def test_an_old_triton(machine) -> None:  # type: ignore[no-untyped-def]
    machine(version=(3, 1))
    result = triton.check_version()
    assert (result.status, result.summary) == ("warn", "Triton 3.1 is too old: 3.3 or newer is needed")
    assert result.fix == "pip install --upgrade 'faops[triton]'"
    assert triton.check_compile().status == "skipped"


def test_no_triton_matters_where_there_is_a_card(machine) -> None:  # type: ignore[no-untyped-def]
    machine(version=None)
    assert triton.check_version().status == "skipped"
    machine(version=None, card=(9, 0))
    result = triton.check_version()
    assert (result.status, result.fix) == ("warn", "pip install 'faops[triton]'")
    assert {triton.check_compiler().status, triton.check_cache().status, triton.check_compile().status} == {"skipped"}


# --- the interpreter --------------------------------------------------------------------------------------------------


def test_interpreting_is_slow(machine, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    machine()
    assert triton.check_interpreter().status == "ok"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert triton.check_interpreter().status == "ok"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = triton.check_interpreter()
    assert (result.status, result.fix) == ("warn", "unset TRITON_INTERPRET")
    assert "TRITON_INTERPRET=1" in result.summary


# --- the C compiler ---------------------------------------------------------------------------------------------------


def test_a_c_compiler_is_looked_for_where_there_is_a_card(machine, monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    machine(programs=("gcc",))
    assert triton.check_compiler().status == "skipped"
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    machine(card=(9, 0))
    result = triton.check_compiler()
    assert result.status == "warn"
    assert result.summary == "no C compiler for Triton: none of gcc, clang is installed"
    machine(card=(9, 0), programs=("clang",))
    result = triton.check_compiler()
    assert (result.status, result.fix) == ("warn", "sudo apt-get install python3-dev")
    (tmp_path / "Python.h").touch()
    assert triton.check_compiler().summary == "C compiler gcc 12.2"
    monkeypatch.setenv("CC", "tinycc")
    result = triton.check_compiler()
    assert (result.summary, result.fix) == ("no C compiler for Triton: CC=tinycc is not there", "unset CC")


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_directory(machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    machine(card=(8, 0))
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert triton.check_cache().summary == f"{tmp_path}/.triton/cache can be created"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert triton.check_cache().summary == f"{tmp_path} can be written"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = triton.check_cache()
    assert (result.status, result.summary) == ("fail", f"{tmp_path}/file/cache cannot be written")
    assert result.fix.startswith("export TRITON_CACHE_DIR=")


def test_a_read_only_cache_directory(machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    machine(card=(8, 0))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert triton.check_cache().status == "fail"


# --- compiling --------------------------------------------------------------------------------------------------------


def test_it_compiles_for_the_card(machine) -> None:  # type: ignore[no-untyped-def]
    for card, arch in (((9, 0), "sm_90"), ((12, 0), "sm_120"), (None, "sm_80")):
        commands = machine(card=card, output=(True, "warning\n0.5 s, 40 registers a thread"))
        result = triton.check_compile()
        assert result.summary == f"one kernel compiled for {arch}: 0.5 s, 40 registers a thread"
        assert arch in commands[0][-1]
    assert machine(card=(7, 5)) == []
    assert "sm_80 or newer, not sm_75" in triton.check_compile().summary


def test_a_compiler_that_fails(machine) -> None:  # type: ignore[no-untyped-def]
    machine(output=(False, "\n".join(f"line {i}" for i in range(9))))
    result = triton.check_compile()
    assert result.status == "fail"
    assert result.details == tuple(f"line {i}" for i in range(4, 9))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="NOT TESTED: Triton is not installed")
def test_a_kernel_compiles_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where this process interprets."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    result = triton.check_compile()
    assert result.status == "ok", result
    assert "registers a thread" in result.summary
