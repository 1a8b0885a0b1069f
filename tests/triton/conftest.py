"""Fixtures of the tests that run Triton kernels, which are interpreted: tests/conftest.py sees to it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from faops import dispatch


@pytest.fixture(autouse=True)
def interpreted(private_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels accept CPU tensors."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("NOT TESTED, no kernel was interpreted: Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.forget()
    with np.errstate(divide="ignore"):  # the interpreter computes with NumPy, which warns of log2(0) = -inf
        yield


@pytest.fixture(autouse=True)
def no_lost_checks(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves the time of a test: without `debug` the interpreter computes whether integers overflow and drops the
    answer.
    """
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    if not builder.options.debug:
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))


@pytest.fixture(autouse=True)
def patched_once(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves the time of a test: the interpreter patches triton.language anew for every function that a kernel calls,
    and once a launch is enough.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(function: Any) -> Any:
        names = ("tl" in function.__globals__, "core" in function.__globals__)
        if names in patched:
            return None
        patched.add(names)
        return patch(function)

    def run_patched(*arguments: Any, **options: Any) -> None:
        patched.clear()
        run(*arguments, **options)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", run_patched)
