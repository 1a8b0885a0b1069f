"""Compiling ahead of time: what it refuses here. What it gives is tested where Triton compiles: on_stub.py."""

from __future__ import annotations

import pytest

from faops.backends.triton import versions
from faops.backends.triton.compile import compile_launch
from faops.backends.triton.gates.cases import defaults
from faops.backends.triton.gates.code import check_case
from faops.errors import UnavailableError

(CASE,) = defaults(["sm_80"], ["forward"], [64], ["float16"], ["causal"])


def test_process_that_interprets() -> None:
    with pytest.raises(UnavailableError, match="interprets its kernels in this process"):
        compile_launch(*CASE.launches()[0], "sm_80")
    assert ["interprets" in text for one in check_case(CASE) for text in one.failures] == [True]


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    with pytest.raises(UnavailableError, match=r"not installed: pip install 'faops\[triton\]'"):
        compile_launch(*CASE.launches()[0], "sm_80")
