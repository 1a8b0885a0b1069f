"""Runs attention calls through the Triton kernels in Triton's interpreter, with configs that a test chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest
import torch

from faops import dispatch, registry
from faops.backends.triton import launch, space
from faops.backends.triton.launch import Launch, Tensors
from faops.operands import ALIGNMENT
from faops.registry import Config
from tests.support import Case, check

BACKEND = "triton"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Small enough that few rows and keys make tiles of every kind: edges on both sides, whole ones between, a last one that
# is not full. Rows and keys differ, so that one taken for the other shows.
TILES, TALL_TILES = space.make_config(16, 32, 4, 1), space.make_config(32, 16, 4, 1)
BACKWARD_TILES = space.make_backward_config(16, 32, 4, 1)
ATOMIC_TILES = space.make_backward_config(32, 16, 4, 1, atomic_dq=True)

_seen: dict[Hashable, tuple[Any, ...]] = {}  # what each key of a launch stood for so far


@contextlib.contextmanager
def recording(module: ModuleType, configs: Mapping[str, Config | None]) -> Iterator[list[Launch]]:
    """Kernels, by their ids, run with these configs, None for their defaults. Gives the launches of ``module``.

    A launch is repeated for its key alone, so every key must stand for one launch and one kind of tensors.
    """
    launches: list[Launch] = []
    original = module.launch

    def record(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
        made = build()
        launches.append(made)
        kinds = [None if t is None else (t.dtype, t.data_ptr() % ALIGNMENT == 0) for t in tensors]
        known = _seen.setdefault((module.__name__, key), (made, kinds))
        assert known == (made, kinds), f"one key for two launches: {key}"
        original(key, tensors, lambda: made)

    def fix(kernel_id: str, config: Config) -> None:
        patch.setattr(registry.get(kernel_id), "default_config", lambda problem, device: config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "launch", record)
        for kernel_id, config in configs.items():
            if config is not None:
                fix(kernel_id, config)
        dispatch.forget()
        yield launches
    dispatch.forget()


def recorded(
    config: Config | None = TILES, backward_config: Config | None = BACKWARD_TILES
) -> AbstractContextManager[list[Launch]]:
    """Forward and backward run with these configs, None for their defaults. Gives the list of what is launched."""
    return recording(launch, {"triton.forward": config, "triton.backward": backward_config})


def check_kernels(
    case: Case,
    config: Config | None = TILES,
    backward_config: Config | None = BACKWARD_TILES,
    *,
    backward: bool = True,
) -> None:
    """Hold ``case`` to the accuracy rule, forward and backward, and make sure that these kernels are what ran."""
    with recorded(config, backward_config) as launches:
        check(case, BACKEND, backward=backward)
    ran = [made.kernel for made in launches]
    assert ran[0] == "forward.attention_forward"
    assert ("backward.attention_dkv" in ran) == backward


def rotate(values: Sequence[Any], name: str) -> pytest.MarkDecorator:
    """Parametrises ``dtype`` and ``name`` over all combinations; each value with one of the dtypes, in turn, is left
    for the short run.
    """
    return pytest.mark.parametrize(
        f"dtype, {name}",
        [
            pytest.param(dtype, value, marks=[] if i % len(DTYPES) == j else [pytest.mark.full],
                         id=f"{str(dtype).removeprefix('torch.')}-{_name(value)}")
            for i, value in enumerate(values)
            for j, dtype in enumerate(DTYPES)
        ],
    )  # fmt: skip


def _name(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
