"""Group kernels: real kernels pass, and kernels that are wrong, crash or refuse are told apart.

That a slightly wrong result of any kernel fails is in :mod:`tests.doctor.breakages_of_results`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from faops import registry
from faops.device import detect, known
from faops.doctor import kernels, trial
from faops.problem import AttentionProblem
from faops.registry import Kernel, Rejected
from tests.doctor.machine import able_to_run

ALL = registry.kernels()


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The kernel a test is parametrised with, on a machine that can run it."""
    with able_to_run(request.param, monkeypatch):
        yield request.param


def a_kernel() -> Kernel:
    """One that runs here."""
    found = registry.get("torch.sdpa_forward")
    assert found is not None
    return found


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.id, indirect=True)
def test_real_kernels_agree_with_the_reference(kernel: Kernel) -> None:
    result = kernels.check_kernel(kernel)
    assert result.status == "ok", result
    assert "max error" in result.summary
    assert "max error 0.0e+00" not in result.summary


def test_one_check_a_kernel() -> None:
    assert [check.id for check in kernels.checks()][1:] == [f"kernels.{kernel.id}" for kernel in ALL]


def _changed(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Make ``kernel`` put its results through ``change``."""
    usual = kernel.launch
    monkeypatch.setattr(kernel, "launch", lambda inputs, config: change(usual(inputs, config), inputs))


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.id, indirect=True)
def test_one_nan_fails(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(results: tuple[torch.Tensor, ...], inputs: object) -> tuple[torch.Tensor, ...]:
        results[0].flatten()[-1] = torch.nan
        return results

    _changed(kernel, monkeypatch, spoil)
    result = kernels.check_kernel(kernel)
    assert result.status == "fail"
    assert "nan" in result.summary


def test_wrong_shape_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = a_kernel()
    _changed(kernel, monkeypatch, lambda results, inputs: (results[0][:, :1], *results[1:]))
    result = kernels.check_kernel(kernel)
    assert result.status == "fail"
    assert "a result has shape (2, 1, 4, 64)" in result.summary


def test_wrong_lse_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = registry.get("torch.blockwise_forward")
    assert kernel is not None
    _changed(kernel, monkeypatch, lambda results, inputs: (results[0], results[1] + 1e-3))
    assert kernels.check_kernel(kernel).status == "fail"


def test_decode_that_does_not_write_the_cache_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = registry.get("torch.blockwise_decode")
    assert kernel is not None

    def undo(results: tuple[torch.Tensor, ...], inputs: Any) -> tuple[torch.Tensor, ...]:
        inputs.k_cache[:, -1] = 0.0
        return results

    _changed(kernel, monkeypatch, undo)
    assert kernels.check_kernel(kernel).status == "fail"


def test_a_kernel_that_raises_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = a_kernel()

    def broken(inputs: object, config: object) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(kernel, "launch", broken)
    result = kernels.check_kernel(kernel)
    assert result.status == "fail"
    assert "does not run" in result.summary
    assert "illegal memory access" in result.summary
    assert result.fix


def test_a_kernel_for_another_device_is_skipped_with_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = a_kernel()
    monkeypatch.setattr(kernel, "check", lambda problem, device: Rejected(("needs sm_90",)))
    result = kernels.check_kernel(kernel)
    assert result.status == "skipped"
    assert result.details == ("cpu: needs sm_90",)


def test_of_many_reasons_those_that_always_hold_are_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = a_kernel()

    def check(problem: AttentionProblem, device: object) -> Rejected:
        return Rejected(("it has no float32", "needs sm_90") if problem.dtype == "float32" else ("needs sm_90",))

    monkeypatch.setattr(kernel, "check", check)
    result = kernels.check_kernel(kernel)
    assert (result.status, result.summary) == ("skipped", "does not run here: cpu: needs sm_90")
    assert result.details == ("cpu: it has no float32; needs sm_90", "cpu: needs sm_90")
    monkeypatch.setattr(kernel, "check", lambda problem, device: Rejected((problem.dtype,)))
    result = kernels.check_kernel(kernel)
    assert (result.status, result.summary) == ("skipped", "accepts no small problem on a device of this machine")
    assert result.details == ("cpu: float32", "cpu: float16")


def test_small_problems_suit_their_device() -> None:
    assert trial.problems("forward", detect("cpu"))[0].dtype == "float32"
    assert trial.problems("forward", known("t4"))[0].dtype == "float16"
    for op in ("forward", "backward", "decode"):
        assert {problem.op for problem in trial.problems(op, detect("cpu"))} == {op}  # type: ignore[arg-type]


def test_backends_that_load() -> None:
    result = kernels.check_backends()
    assert result.status == "ok"
    assert f"{len(ALL)} kernels of cuda_raw, npu, torch, triton" in result.summary


def test_backend_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._failures, "acme", "ImportError: no acme")
    result = kernels.check_backends()
    assert result.status == "fail"
    assert result.details == ("acme: ImportError: no acme",)
    assert result.fix == "pip install --upgrade --force-reinstall acme"


def test_registry_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No crash: the one check that is left says what is wrong."""

    def broken(op: object = None) -> list[Kernel]:
        raise AttributeError("no register_kernels")

    monkeypatch.setattr(registry, "kernels", broken)
    (check,) = kernels.checks()
    result = check.run()
    assert result.status == "fail"
    assert "AttributeError: no register_kernels" in result.summary


def test_empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "kernels", lambda op=None: [])
    monkeypatch.setattr(registry, "failures", dict)
    assert kernels.check_backends().summary == "no kernel is registered"
