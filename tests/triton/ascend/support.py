"""Runs attention calls through the Ascend kernel in Triton's interpreter, with configs that a test chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from faops import dispatch, registry
from faops.backends.triton.ascend import launch, space
from faops.backends.triton.launch import Launch, Tensors
from faops.device import known
from faops.operands import ALIGNMENT
from faops.registry import Config
from tests.support import FORWARD, Case, check

NPU = known("910b")
BACKEND = "triton.ascend_forward"
FEATURES = [name for name in FORWARD if name != "dropout"]
# Small enough that few rows and keys make tiles of every kind, and no program gets one tile only.
TILES, TALL_TILES = space.make_config(16, 32, 3), space.make_config(32, 16, 3)

_seen: dict[Hashable, tuple[Any, ...]] = {}  # what each key of a launch stood for so far


@contextlib.contextmanager
def recorded(config: Config | None = TILES) -> Iterator[list[Launch]]:
    """The kernel runs with this config, None for its default. Gives the list of what is launched.

    A launch is repeated for its key alone, so every key must stand for one launch and one kind of tensors.
    """
    launches: list[Launch] = []
    original = launch.launch

    def record(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
        made = build()
        launches.append(made)
        kinds = [None if t is None else (t.dtype, t.data_ptr() % ALIGNMENT == 0) for t in tensors]
        assert _seen.setdefault(key, (made, kinds)) == (made, kinds), f"one key for two launches: {key}"
        original(key, tensors, lambda: made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", record)
        if config is not None:
            patch.setattr(registry.get(BACKEND), "default_config", lambda problem, device: config)
        dispatch.forget()
        yield launches
    dispatch.forget()


def check_kernel(case: Case, config: Config | None = TILES) -> None:
    """Hold ``case`` to the accuracy rule, and make sure that this kernel is what ran."""
    with recorded(config) as launches:
        check(case, BACKEND, backward=False)
    assert [made.kernel for made in launches] == ["ascend_forward.attention_forward"]
