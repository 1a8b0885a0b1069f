"""Fixtures of the tests that run Triton kernels, which are interpreted: tests/conftest.py sees to it."""

from __future__ import annotations

import importlib.util

import pytest

from faops import dispatch


@pytest.fixture(autouse=True)
def interpreted(private_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels accept CPU tensors."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("NOT TESTED, no kernel was interpreted: Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    dispatch.forget()
