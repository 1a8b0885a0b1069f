"""KV-cache calls on the Triton kernels, with small tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from faops import registry
from faops.backends.triton import decode_space
from faops.backends.triton.launch import Launch
from faops.registry import Config
from tests import kvcache
from tests.kvcache import Call
from tests.triton.support import BACKEND, recorded

# Small enough that some tens of keys make every kind of block: hidden on the left, whole, and hidden on the right.
TILES = (decode_space.make_config(16, 16, 4, 1), decode_space.make_config(32, 32, 4, 1))


@contextlib.contextmanager
def configured(config: Config | None) -> Iterator[list[Launch]]:
    """The KV-cache kernel runs with ``config`` in place of its default; gives the list of what is launched."""
    with recorded(None, None) as launches, pytest.MonkeyPatch.context() as patch:
        if config is not None:
            patch.setattr(registry.get("triton.decode"), "default_config", lambda problem, device: config)
        yield launches


def check(call: Call, config: Config | None = TILES[0]) -> list[Launch]:
    """:func:`tests.kvcache.check` with ``config``; what was launched."""
    with configured(config) as launches:
        kvcache.check(call, BACKEND, str(config))
    assert "decode.attention_decode" in [made.kernel for made in launches]
    return launches
