"""Which blocks the kernels visit and which they mask, against every pair of the band; offsets that exceed 32 bits."""

from __future__ import annotations

import importlib
import random

import pytest
import torch
from torch import Tensor

import faops
from faops import reference
from faops.backends.triton import specialize
from faops.backends.triton.space import make_backward_config, make_config
from tests.triton.support import BACKEND, recorded


def visible(M: int, N: int, left: int, right: int) -> Tensor:
    place, keys = torch.arange(M)[:, None] + N - M, torch.arange(N)
    shown = torch.ones(M, N, dtype=torch.bool)
    if left >= 0:
        shown &= keys >= place - left
    if right >= 0:
        shown &= keys <= place + right
    return shown


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "rows"])
def test_three_runs_of_blocks(keys: bool) -> None:
    """Together they hold every visible pair, the middle one holds only such, and no run is longer than it must be.

    Blocks behind the last row or key count as hidden there, which the last run's mask sees to.
    """
    probe = importlib.import_module("tests.triton.probe")
    runs_seen = set()
    for _ in range(150):
        M, N = random.randint(1, 90), random.randint(1, 90)
        left, right = (random.choice([-1, random.randint(0, 60)]) for _ in range(2))
        own, block = random.choice([(16, 16), (16, 32), (32, 16)])
        shown = visible(M, N, left, right)
        shown = shown if keys else shown.T
        owned, stepped = shown.shape
        start = random.randrange(0, owned, own)
        found = torch.zeros(4, dtype=torch.int32)
        probe.find_range[(1,)](
            found, start, min(start + own, owned), M, N, left, right,
            BLOCK=block, WINDOW_LEFT=left >= 0, WINDOW_RIGHT=right >= 0, KEYS=keys,
        )  # fmt: skip
        low, full_low, full_high, high = found.tolist()
        context = f"M={M} N={N} band=({left}, {right}) start={start} own={own} block={block}: {found.tolist()}"
        assert 0 <= low <= full_low <= full_high <= high, context
        assert all(place % block == 0 for place in (low, full_low, full_high, high)), context
        tile = shown[start : start + own]
        assert not tile[:, :low].any(), context
        assert not tile[:, high:].any(), context
        assert full_high <= stepped or full_low == full_high, context
        assert tile[:, full_low:full_high].all(), context
        for first in range(low, high, block):
            inside = tile[:, first : first + block]
            whole = bool(inside.all()) and first + block <= stepped
            assert whole == (full_low <= first < full_high) or not inside.any(), context
        if low < high:
            assert tile[:, low : low + block].any(), context
            assert tile[:, high - block : high].any(), context
        runs_seen.add((low < full_low, full_low < full_high, full_high < high))
    assert (True, True, True) in runs_seen


# ---------------------------------------------------------------------------------------------- offsets

TWO_GIB = 2**31


@pytest.fixture
def without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies every argument's storage back, here onto itself: gigabytes that are never looked at."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *arguments: None)


def vast(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """Random float16 numbers that lie far apart; memory between them is reserved and never touched."""
    last = sum((size - 1) * stride for size, stride in zip(shape, strides))
    numpy = importlib.import_module("numpy")
    tensor = torch.from_numpy(numpy.zeros(last + 1, dtype=numpy.float16)).as_strided(shape, strides)
    return tensor.copy_(torch.randn(shape).half())


@pytest.mark.usefixtures("without_copies")
@pytest.mark.parametrize(
    ("rows", "strides"),
    [
        (70, (16, TWO_GIB // 64, 8, 1)),  # a later tile starts behind the limit
        (70, (16, TWO_GIB // 62, 8, 1)),  # a tile's own rows reach beyond it
        (5, (TWO_GIB + 64, 16, 8, 1)),  # the second sequence does
        (5, (80, 16, TWO_GIB + 64, 1)),  # the second head does
    ],
    ids=["tiles", "rows", "batch", "heads"],
)
def test_offsets_beyond_32_bits(rows: int, strides: tuple[int, ...]) -> None:
    """In q, k, v and dout, forward and backward."""
    shape = (2 if strides[0] > TWO_GIB else 1, rows, 2, 8)
    large = 64 if strides[1] > TWO_GIB // 64 else 16
    small = torch.randn(shape[0], 20, 2, 8).half()
    configs = make_config(large, 16, 4, 1), make_backward_config(large, 16, 4, 1)
    for far_queries in (True, False):
        far, dout = vast(shape, strides), torch.randn(shape if far_queries else small.shape).half()
        tensors = (far, small, small) if far_queries else (small, far, far)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with recorded(*configs) as launches:
            out = faops.attention(*leaves, backend=BACKEND)
            found = torch.autograd.grad(out, leaves, vast(shape, strides).copy_(dout) if far_queries else dout)
        assert launches[0].constants["WIDE"] == (strides[1] > TWO_GIB // 256)
        near = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in tensors]
        exact, _ = reference.attention(*near)
        torch.testing.assert_close(out.double(), exact, atol=2e-3, rtol=2e-3)
        for mine, expected in zip(found, torch.autograd.grad(exact, near, dout.double())):
            torch.testing.assert_close(mine.double(), expected.double(), atol=5e-3, rtol=5e-3)


def test_wide_offsets_are_used_from_the_first_stride_that_needs_them() -> None:
    largest = (TWO_GIB - 1) // specialize.LARGEST_TILE

    def rows(stride: int) -> torch.Tensor:
        return torch.empty((2, 1, 1), device="meta").as_strided((2, 1, 1), (stride, 1, 1))

    def matrix(row: int, key: int) -> torch.Tensor:
        return torch.empty((1, 1, 2, 2), device="meta").as_strided((1, 1, 2, 2), (0, 0, row, key))

    assert not specialize.is_wide([rows(largest)], [None, matrix(largest, largest)])
    assert specialize.is_wide([rows(1), rows(largest + 1)])
    assert specialize.is_wide([rows(1)], [matrix(largest + 1, 1)])
    assert specialize.is_wide([rows(1)], [matrix(1, largest + 1)])
    assert not specialize.is_wide([rows(1)], [matrix(largest + 1, 1)[:, :, :1]])
