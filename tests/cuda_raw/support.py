"""Runs attention calls through the raw CUDA kernels in the emulator, as they are or changed on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from faops import dispatch, registry
from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.emulator import Report
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.specialize import Specialised
from faops.registry import Config
from tests.support import Case, check

KERNELS = {"t4": "cuda_raw.sm75_forward", "a100": "cuda_raw.sm80_forward"}
HALF, BFLOAT = torch.float16, torch.bfloat16
# What each card computes in, as parameters of a test.
TYPED_CARDS = [("t4", HALF), ("a100", HALF), ("a100", BFLOAT)]
BACKEND = "cuda_raw"


class Launch(NamedTuple):
    """One kernel that ran."""

    kernel: Specialised
    report: Report

    def constant(self, name: str) -> str:
        """What the kernel was specialised for, as C++ text."""
        header = dict(self.kernel.source.headers)["specialization.cuh"]
        return header.split(f" {name} = ")[1].split(";")[0]


def kernel_of(card: str) -> RawForward:
    kernel = registry.get(KERNELS[card])
    assert isinstance(kernel, RawForward)
    return kernel


@contextlib.contextmanager
def emulated(
    card: str,
    config: Config | None = None,
    mode: str = "run",
    change: Callable[[Source], Source] | None = None,
    kernels: Mapping[str, str] = KERNELS,
) -> Iterator[list[Launch]]:
    """Calls on CPU tensors run on an emulated ``card``, its kernel among ``kernels`` with ``config`` instead of the
    default one, in a ``mode`` of the emulator, from sources that ``change`` has altered. Gives the list that each
    launch adds itself to.
    """
    launches: list[Launch] = []
    original = emulator.launch

    def launch(kernel: Specialised, tensors: Sequence[Tensor | None], arch: str) -> Report:
        kernel = kernel if change is None else replace(kernel, source=change(kernel.source))
        report = original(kernel, tensors, arch, mode)
        launches.append(Launch(kernel, report))
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAOPS_EMULATE", card)
        patch.setattr(emulator, "launch", launch)
        if config is not None:
            patch.setattr(registry.get(kernels[card]), "default_config", lambda problem, device: config)
        dispatch.forget()
        yield launches
    dispatch.forget()


def check_on(card: str, case: Case, config: Config | None = None, *, backward: bool = False) -> None:
    """Hold ``case`` to the accuracy rule on an emulated card, and make sure that its kernel is what ran."""
    with emulated(card, config) as launches:
        check(case, BACKEND, backward=backward)
    assert len(launches) == 1, f"{len(launches)} launches on {card}"


def rotate(values: Sequence[Any], name: str, cards: Sequence[Any] = TYPED_CARDS) -> pytest.MarkDecorator:
    """Parametrises ``card, dtype`` and ``name`` over all combinations; each value with one of the cards, in turn, is
    left for the short run.
    """
    combinations = [
        pytest.param(*typed, value, marks=[] if i % len(cards) == j else [pytest.mark.full],
                     id=f"{typed[0]}-{str(typed[1]).removeprefix('torch.')}-{_name(value)}")
        for i, value in enumerate(values)
        for j, typed in enumerate(cards)
    ]  # fmt: skip
    return pytest.mark.parametrize(f"card, dtype, {name}", combinations)


def _name(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
