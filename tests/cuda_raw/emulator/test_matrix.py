"""Matrix instructions, ldmatrix and shuffles give what the definition of their fragments says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cuda_raw.emulator.tiny import launch, source, words

# A comes as 16 rows of 8 words, B transposed as 8 rows of 8 (or 4), C goes out as 16 rows of 8 floats.
PRODUCT = """
const int g = t / 4, r = t % 4, row = params.what / 2;
const u32 *a = params.a + g * row + r, *b = params.b + g * row + r;
float c[4] = {{1.0f, 2.0f, 3.0f, 4.0f}};
{call}
float* out = reinterpret_cast<float*>(params.out) + 8 * g + 2 * r;
store_global(out, c[0]);
store_global(out + 1, c[1]);
store_global(out + 64, c[2]);
store_global(out + 65, c[3]);
"""
FULL = """
const u32 fragment[4] = {{load_global(a), load_global(a + 8 * row), load_global(a + 4), load_global(a + 8 * row + 4)}};
mma_m16n8k16_{dtype}(c, fragment, load_global(b), load_global(b + 4));
"""
HALF = "mma_m16n8k8_f16(c, load_global(a), load_global(a + 8 * row), load_global(b));"


def start() -> Tensor:
    """What PRODUCT adds to: 1 and 2 in even and odd columns of the upper rows, 3 and 4 below."""
    return torch.cat([torch.tensor([1.0, 2.0] * 4).repeat(8, 1), torch.tensor([3.0, 4.0] * 4).repeat(8, 1)])


def exact(a: Tensor, b: Tensor) -> Tensor:
    """float32 sums in the order of k, each rounded once."""
    total = start().double()
    for k in range(a.shape[1]):
        total = (total + a[:, k : k + 1].double() * b[k].double()).float().double()
    return total.float()


@pytest.mark.parametrize(
    ("call", "depth", "dtype", "arch"),
    [
        (FULL.format(dtype="f16"), 16, torch.float16, "sm_80"),
        (FULL.format(dtype="bf16"), 16, torch.bfloat16, "sm_80"),
        (HALF, 8, torch.float16, "sm_75"),
    ],
    ids=["f16", "bf16", "k8"],
)
def test_products(call: str, depth: int, dtype: torch.dtype, arch: str) -> None:
    a, b, out = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.full((16, 8), torch.nan)
    a[0, 1] = 2.0**-24 if dtype == torch.float16 else 2.0**-130  # subnormal
    launch(source(PRODUCT.format(call=call)), out, a, b.t().contiguous(), depth, arch=arch)
    torch.testing.assert_close(out, exact(a, b), rtol=0, atol=0)


def test_products_carry_infinity_and_nan() -> None:
    a, b, out = torch.ones(16, 16).half(), torch.ones(16, 8).half(), torch.zeros(16, 8)
    a[2, 5], a[9, 0] = torch.inf, torch.nan
    launch(source(PRODUCT.format(call=FULL.format(dtype="f16"))), out, a, b.t().contiguous(), 16)
    assert out[2].isposinf().all() and out[9].isnan().all()
    others = [row for row in range(16) if row not in (2, 9)]
    torch.testing.assert_close(out[others], start()[others] + 16)


LDMATRIX = """
store_shared_vec4(base + 16 * t, load_global(reinterpret_cast<const Vec4*>(params.a) + t));
sync_warp();
u32 words[4];
const u32 row = base + 16 * (t ^ 5);
if (params.what) ldmatrix_transposed(words, row); else ldmatrix(words, row);
for (int i = 0; i < 4; ++i) store_global(params.out + 32 * i + t, words[i]);
"""


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed: bool) -> None:
    rows = torch.arange(256, dtype=torch.int16).reshape(32, 8)
    out = words(128)
    launch(source(LDMATRIX), out, rows, what=int(transposed))
    matrices = rows[torch.arange(32) ^ 5].reshape(4, 8, 8)
    if transposed:
        matrices = matrices.transpose(1, 2)
    # Lane l holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4: the matrix in row order, two elements a lane.
    torch.testing.assert_close(out.view(torch.int16).reshape(4, 8, 8), matrices.contiguous())


def test_shuffles() -> None:
    body = """
    store_global(params.out + t, shuffle_xor(u32(100 + t), params.what));
    store_global(params.out + 64 + t, u32(warp_index()));
    """
    kernel, threads = source(body, threads=64), torch.arange(64, dtype=torch.int32)
    for mask in (1, 2, 16, 31):
        out = words(128)
        launch(kernel, out, what=mask)
        torch.testing.assert_close(out[:64], 100 + (threads ^ mask))
        torch.testing.assert_close(out[64:], threads // 32)


def test_votes() -> None:
    body = """
    store_global(params.out + t, u32(any_in_warp(t == params.what)));
    store_global(params.out + 64 + t, u32(any_in_warp(t != 40)));
    """
    kernel = source(body, threads=64)
    for voter in (0, 31, 45, 64):
        out = words(128)
        launch(kernel, out, what=voter)
        assert out[:64].tolist() == [int(thread // 32 == voter // 32) for thread in range(64)]
        assert (out[64:] == 1).all()


def test_shuffle_of_floats() -> None:
    out = torch.zeros(32)
    launch(source("store_global(reinterpret_cast<float*>(params.out) + t, shuffle_xor(0.5f + t, 4));"), out)
    torch.testing.assert_close(out, 0.5 + (torch.arange(32) ^ 4))
