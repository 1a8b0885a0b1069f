"""Arithmetic and conversions as the GPU's instructions define them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.cuda_raw.emulator.tiny import launch, source, words

UNARY = "float* out = reinterpret_cast<float*>(params.out); const float x = as_float(load_global(params.a + t));"
TINY = 2.0**-126  # the smallest normal float32


def mapped(expression: str, values: list[float], arch: str = "sm_80") -> Tensor:
    """``expression`` of ``x`` for up to 32 values, as float32."""
    inputs, out = torch.zeros(32), torch.zeros(32)
    inputs[: len(values)] = torch.tensor(values)
    launch(source(f"{UNARY} store_global(out + t, {expression});"), out, inputs, arch=arch)
    return out[: len(values)]


def test_exp2() -> None:
    values = [0.0, 1.0, -1.5, 10.25, 127.5, 128.0, -125.9, -126.5, -149.0, -math.inf, math.inf]
    expected = torch.exp2(torch.tensor(values))
    expected[expected < TINY] = 0.0  # the one at -126.5 is subnormal
    torch.testing.assert_close(mapped("exp2_fast(x)", values), expected, rtol=2.4e-7, atol=0)
    assert expected[7] == 0 and expected[6] > 0
    assert mapped("exp2_fast(x)", [math.nan]).isnan()


def test_log2() -> None:
    values = [1.0, 3.0, 1e30, TINY, TINY / 2, 0.0, math.inf]
    expected = torch.log2(torch.tensor(values))
    expected[4] = -math.inf
    torch.testing.assert_close(mapped("log2_fast(x)", values), expected, rtol=2.4e-7, atol=0)
    assert mapped("log2_fast(x)", [-1.0]).isnan()


def test_divide() -> None:
    found = mapped("divide_fast(x, 3.0f)", [1.0, -6.0, 2.5 * TINY, math.inf])
    torch.testing.assert_close(found, torch.tensor([1 / 3, -2.0, 0.0, math.inf]), rtol=2.4e-7, atol=0)
    assert mapped("divide_fast(x, 3.0e38f)", [1e38]) == 0, "the reciprocal of a number above 2^126 is 0"
    assert mapped("divide_fast(x, 3.0e38f)", [math.inf]).isnan()


def test_maximum_leaves_nan_out() -> None:
    torch.testing.assert_close(mapped("maximum(x, 1.0f)", [math.nan, 0.0, 2.0]), torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(mapped("maximum(1.0f, x)", [math.nan, 0.0, 2.0]), torch.tensor([1.0, 1.0, 2.0]))


def test_multiply_high() -> None:
    inputs, out = words(32, -1), words(32)
    launch(source("store_global(params.out + t, multiply_high(load_global(params.a + t), 0x12345678u));"), out, inputs)
    assert (out == 0x12345677).all()


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_packing(name: str, dtype: torch.dtype) -> None:
    body = f"""
    const float low = as_float(load_global(params.a + 2 * t)), high = as_float(load_global(params.a + 2 * t + 1));
    const u32 both = pack_{name}(low, high);
    store_global(params.out + t, both);
    float* widened = reinterpret_cast<float*>(params.out) + 32 + 2 * t;
    store_global(widened, widen_{name}(both & 0xffff));
    store_global(widened + 1, widen_{name}(both >> 16));
    """
    special = [0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.9, 65520.0, -65536.0, 3.4e38, 2.0**-24, 2.0**-25,
               2.0**-14, 1.5 * 2.0**-24, 2.0**-130, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8,
               1 + 3 * 2.0**-8, math.nan]  # fmt: skip
    values = torch.cat([torch.tensor(special), torch.randn(64 - len(special)) * 2.0 ** torch.randint(-30, 20, (1,))])
    out = words(96)
    launch(source(body), out, values)
    found, widened = out[:32].view(dtype), out[32:].view(torch.float32)
    torch.testing.assert_close(found, values.to(dtype), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(widened, values.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit() | values.isnan(), values.signbit() | values.isnan())
