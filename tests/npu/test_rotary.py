"""Rotating by npu_rotary_mul, against faops.rotary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faops.backends.npu.inference import rotary
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.rotary import apply_rotary
from tests.npu import double
from tests.npu.cachecalls import LAST_BITS
from tests.npu.support import ascend
from tests.npu.test_infer_decode import inputs_of

PAST = [5, 9]


def inputs_with(rotated: int, dtype: torch.dtype, rows: int = 3, **changes: object) -> DecodeInputs:
    angles = torch.rand(64, rotated // 2) * 6
    return inputs_of(
        q=torch.randn(2, rows, 4, 64).to(dtype), k=torch.randn(2, 2, 2, 64).to(dtype),
        rotary_cos=angles.cos().to(dtype), rotary_sin=angles.sin().to(dtype), **changes,
    )  # fmt: skip


def turned(inputs: DecodeInputs) -> tuple[Tensor, Tensor]:
    q, k = rotary.rotated(inputs, PAST, rotary.takes(inputs, detect(inputs.q.device)))
    return q, k


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """The last bit of a few: the operator need not sum two products as faops.rotary does."""
    off = (found.view(torch.int16).int() - wanted.view(torch.int16).int()).abs()
    assert int(off.max()) <= 1 and int(off.sum()) <= 2 + LAST_BITS * off.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rotated", [64, 32, 6])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_both_modes(npu: double.Handle, dtype: torch.dtype, rotated: int, interleaved: bool, causal: bool) -> None:
    """Rounded once, as faops does it."""
    inputs = inputs_with(rotated, dtype, rotary_interleaved=interleaved, window_right=0 if causal else -1)
    q, k = turned(inputs)
    start = torch.tensor(PAST)[:, None]
    rows = start + torch.arange(3) * causal
    for found, x, positions in ((q, inputs.q, rows), (k, inputs.k, start + torch.arange(2))):
        wanted = apply_rotary(x, inputs.rotary_cos, inputs.rotary_sin, positions, interleaved)
        assert found.dtype == dtype
        assert_same(found, wanted)
    assert npu.count("npu_rotary_mul") == 2


def test_float32_tables_stay_float32(npu: double.Handle) -> None:
    """Given a 16-bit input the operator would round them."""
    inputs = inputs_with(64, torch.float16)
    angles = torch.rand(64, 32) * 6
    inputs.rotary_cos, inputs.rotary_sin = angles.cos(), angles.sin()
    q, _ = turned(inputs)
    positions = torch.tensor(PAST)[:, None] + torch.arange(3)
    assert_same(q, apply_rotary(inputs.q, angles.cos(), angles.sin(), positions, True))


def test_scaled_tables_are_turned_in_torch(npu: double.Handle) -> None:
    """The operator is documented for values in [-1, 1]; tables are looked at once."""
    inputs = inputs_with(64, torch.float16)
    inputs.rotary_cos = inputs.rotary_cos * 1.5
    q, _ = turned(inputs)
    positions = torch.tensor(PAST)[:, None] + torch.arange(3)
    assert torch.equal(q, apply_rotary(inputs.q, inputs.rotary_cos, inputs.rotary_sin, positions, True))
    assert npu.count("npu_rotary_mul") == 0


def test_a_table_is_looked_at_again_after_a_change(npu: double.Handle) -> None:
    table = torch.ones(8, 4)
    assert rotary.is_bounded(table)
    table[3] = 1.5
    assert not rotary.is_bounded(table)


def test_nothing_to_rotate(npu: double.Handle) -> None:
    inputs = inputs_with(64, torch.float16)
    inputs.rotary_cos = inputs.rotary_sin = torch.ones(64, 0).half()
    q, k = turned(inputs)
    assert q is inputs.q and k is inputs.k and not npu.calls


def test_the_310p_turns_in_torch() -> None:
    with ascend(soc="310P") as handle:
        q, _ = turned(inputs_with(64, torch.float16))
        assert q.shape == (2, 3, 4, 64) and not handle.calls
