"""Runs attention calls through the Ascend kernel in Triton's interpreter, with configs that a test chooses."""

from __future__ import annotations

from contextlib import AbstractContextManager

from faops.backends.triton.ascend import launch, space
from faops.backends.triton.launch import Launch
from faops.device import known
from faops.registry import Config
from tests.support import FORWARD, Case, check
from tests.triton.support import recording

NPU = known("910b")
BACKEND = "triton.ascend_forward"
FEATURES = [name for name in FORWARD if name != "dropout"]
# Small enough that few rows and keys make tiles of every kind, and no program gets one tile only.
TILES, TALL_TILES = space.make_config(16, 32, 3), space.make_config(32, 16, 3)


def recorded(config: Config | None = TILES) -> AbstractContextManager[list[Launch]]:
    """The kernel runs with this config, None for its default. Gives the list of what is launched."""
    return recording(launch, {BACKEND: config})


def check_kernel(case: Case, config: Config | None = TILES) -> None:
    """Hold ``case`` to the accuracy rule, and make sure that this kernel is what ran."""
    with recorded(config) as launches:
        check(case, BACKEND, backward=False)
    assert [made.kernel for made in launches] == ["ascend_forward.attention_forward"]
