"""Runs attention calls through the Triton kernels in Triton's interpreter, with configs that a test chooses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from faops import dispatch, registry
from faops.backends.triton import backward, forward, launch, space
from faops.backends.triton.launch import Launch, Tensors
from faops.registry import Config
from tests.support import Case, check

BACKEND = "triton"
# Small enough that a hundred rows and keys make every kind of tile: edges on both sides, whole ones between, a last one
# that is not full. Rows and keys differ, so that one taken for the other shows.
FORWARD_TILES = (space.make_config(16, 32, 4, 1), space.make_config(32, 16, 4, 1))
BACKWARD_TILES = (space.make_backward_config(16, 32, 4, 1), space.make_backward_config(32, 16, 4, 1, atomic_dq=True))


@contextlib.contextmanager
def recorded(forward_config: Config | None = None, backward_config: Config | None = None) -> Iterator[list[Launch]]:
    """Forward and backward run with these configs in place of the defaults; gives the list of what is launched."""
    launches: list[Launch] = []
    original = launch.launch

    def record(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
        made = build()
        launches.append(made)
        original(key, tensors, lambda: made)

    def fix(kernel_id: str, config: Config) -> None:
        patch.setattr(registry.get(kernel_id), "default_config", lambda problem, device: config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", record)
        if forward_config is not None:
            fix("triton.forward", forward_config)
        if backward_config is not None:
            fix("triton.backward", backward_config)
        dispatch.forget()
        yield launches
    dispatch.forget()


def check_kernels(
    case: Case,
    forward_config: Config | None = FORWARD_TILES[0],
    backward_config: Config | None = BACKWARD_TILES[0],
    *,
    backward: bool = True,
) -> list[Launch]:
    """Hold ``case`` to the accuracy rule, forward and backward, and make sure that these kernels are what ran."""
    with recorded(forward_config, backward_config) as launches:
        check(case, BACKEND, backward=backward)
    ran = [made.kernel for made in launches]
    assert ran[0] == "forward.attention_forward"
    assert ("backward.attention_dkv" in ran) == backward
    return launches
