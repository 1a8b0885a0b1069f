"""The combine kernel by itself against float64: results of splits, some of which saw no key, into one."""

from __future__ import annotations

import math

import pytest
import torch

from tests.cuda_raw.decode.parts import Splits
from tests.cuda_raw.decode.support import poisoned_like
from tests.cuda_raw.support import BFLOAT, HALF

pytestmark = pytest.mark.usefixtures("emulator_here")


@pytest.mark.parametrize(
    "splits", [3, 33, 128, *(pytest.param(splits, marks=pytest.mark.full) for splits in (2, 7, 31))]
)
def test_numbers_of_splits(splits: int) -> None:
    """Fewer than there are threads for, a few more, more than a warp has lanes."""
    Splits(splits).check()


DIMS = [1, 8, 33, 40, 96, 128, 192, 256]


@pytest.mark.parametrize("dim_v", [33, 128, *(pytest.param(dim, marks=pytest.mark.full) for dim in DIMS)])
@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_head_dims(dim_v: int, dtype: torch.dtype) -> None:
    Splits(5, dim_v=dim_v, dtype=dtype).check()


@pytest.mark.parametrize("sinks", [False, True])
def test_splits_without_a_key(sinks: bool) -> None:
    """Their results are never read. A row that no split saw a key for is dead, whatever its sink."""
    case = Splits(7, sinks=sinks)
    mask = torch.rand(case.logs.shape) < 0.5
    mask[0, 0, 0] = True
    mask[1, 1, 1, :, :6], mask[1, 1, 1, :, 6] = True, False
    case.hide(mask)
    case.check()
    _, exact_lse = case.expected()
    assert exact_lse.isinf().any() and exact_lse.isfinite().any()


def test_logarithms_far_apart_and_large() -> None:
    """Weights of 2^1000 overflow unless they are taken relative to the largest."""
    case = Splits(7, sinks=True)
    case.logs = torch.tensor([-900.0, -899.0, 10.0, 1000.0, 999.0, -1000.0, 990.0]).expand(case.logs.shape).clone()
    case.operands.sinks.copy_(torch.linspace(-800, 800, 6))  # type: ignore[union-attr]
    found, lse = case.run()
    base = case.logs.amax(-1, keepdim=True)
    weights = torch.exp2((case.logs - base).double())
    total = weights.sum(-1)
    sinks = case.operands.sinks.double().view(1, 2, 1, 3)  # type: ignore[union-attr]
    joined = torch.logaddexp((base.squeeze(-1).double() + total.log2()) * math.log(2), sinks)
    assert lse is not None and found.isfinite().all()
    torch.testing.assert_close(lse.double(), joined.permute(0, 1, 3, 2).reshape(2, 6, 2), atol=1e-4, rtol=1e-6)


def test_results_of_any_stride() -> None:
    """One that starts anywhere is written element by element; nothing beside it is."""
    case = Splits(5)
    wide = poisoned_like(torch.empty(2, 2, 6, 40, dtype=HALF))
    before = wide.view(torch.int16).clone()
    case.check(out=wide[..., 1:33])
    after = wide.view(torch.int16)
    assert torch.equal(after[..., :1], before[..., :1]) and torch.equal(after[..., 33:], before[..., 33:])


def test_without_lse() -> None:
    case = Splits(5)
    case.check(need_lse=False)


def test_the_same_every_time() -> None:
    case = Splits(33)
    assert torch.equal(case.run()[0].clone(), case.run()[0])


@pytest.mark.parametrize("mode", [pytest.param("thread", marks=pytest.mark.full), "address"])
def test_sanitizers(mode: str) -> None:
    Splits(33, dim_v=40).check(mode)


def test_bytes_moved_and_banks() -> None:
    """Each result is read once, 16 bytes a thread, and whole sectors of it; no bank is waited for."""
    case = Splits(16, dim_v=128)
    case.check("counters")
    counters = case.report.counters
    assert counters is not None and counters.conflicts == 0
    loads = [site for site in counters.device if site.kind == "load" and site.access_bytes == 16]
    assert sum(site.sectors * 32 for site in loads) == case.results.numel() * 4
    stored = [site for site in counters.device if site.kind == "store"]
    assert sum(site.bytes for site in stored) == case.out.numel() * 2 + case.out.shape[:3].numel() * 4
