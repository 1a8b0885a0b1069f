"""Micro-tests of the matrix products: random numbers, whole numbers whose sums are exact, and subnormal ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.micro import Micro, Words, bfloat16_bits, words_of

ROWS, COLUMNS = 16, 8
WARPS = 2
# A tensor core aligns the products of a sum to the largest and cuts off what then lies below its last bit: each of at
# most 17 terms may lose a unit of 2^-23 of the largest, which their magnitudes' sum bounds.
ERROR = 2.0**-19

Encode = Callable[[Any], NDArray[np.uint16]]


class Product(NamedTuple):
    """A kind of matrix product: its depth, how its operands are encoded, and the call."""

    name: str
    depth: int
    encode: Encode
    call: str
    arch: int


def _float16_bits(values: Any) -> NDArray[np.uint16]:
    return np.asarray(values).astype(np.float16).view(np.uint16)


PRODUCTS = (
    Product("mma_m16n8k16_f16", 16, _float16_bits, "mma_m16n8k16_f16(c, x, y[0], y[1]);", 80),
    Product("mma_m16n8k16_bf16", 16, bfloat16_bits, "mma_m16n8k16_bf16(c, x, y[0], y[1]);", 80),
    Product("mma_m16n8k8_f16", 8, _float16_bits, "mma_m16n8k8_f16(c, x[0], x[1], y[0]);", 75),
)
# Each lane's words of A (four, or two at depth 8), B (two, or one) and C (four), which stands behind A.
BODY = """u32 x[4] = {{}}, y[2] = {{}};
float c[4];
for (int i = 0; i < {a_words}; ++i) x[i] = load_global(a + {a_words} * t + i);
for (int i = 0; i < {b_words}; ++i) y[i] = load_global(b + {b_words} * t + i);
for (int i = 0; i < 4; ++i) c[i] = as_float(load_global(a + {a_words} * 64 + 4 * t + i));
{call}
for (int i = 0; i < 4; ++i) store_global(out_float + 4 * t + i, c[i]);"""


def matrix_micros() -> list[Micro]:
    return [micro for index, product in enumerate(PRODUCTS) for micro in _of(product, 100 + index)]


def _of(product: Product, seed: int) -> list[Micro]:
    rng = np.random.default_rng(seed)

    def draw(rows: int, columns: int) -> NDArray[np.float64]:
        return rng.standard_normal((WARPS, rows, columns))

    def whole(rows: int, columns: int) -> NDArray[np.float64]:
        return rng.integers(-8, 9, (WARPS, rows, columns)).astype(np.float64)

    depth = product.depth
    found = [
        _micro(product, "random", draw(ROWS, depth), draw(depth, COLUMNS), draw(ROWS, COLUMNS), exact=False),
        _micro(product, "whole", whole(ROWS, depth), whole(depth, COLUMNS), whole(ROWS, COLUMNS), exact=True),
    ]
    if product.encode is _float16_bits:
        smallest = 2.0**-24
        small = rng.integers(-1023, 1024, (WARPS, ROWS, depth)).astype(np.float64) * smallest
        found.append(
            _micro(product, "subnormal", small, whole(depth, COLUMNS), whole(ROWS, COLUMNS) * 2.0**-20, exact=True)
        )
    return found


def _micro(
    product: Product,
    name: str,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    exact: bool,
) -> Micro:
    """A's, B's and C's fragments, and C + A B as the lanes hold it."""
    a_bits, b_bits, c = product.encode(a), product.encode(b), c.astype(np.float32).astype(np.float64)
    a_value, b_value = (_decode(bits, product) for bits in (a_bits, b_bits))
    result = a_value @ b_value + c
    bound = ERROR * (np.abs(a_value) @ np.abs(b_value) + np.abs(c))
    a_words = _fragments(a_bits)
    lanes = a_words.reshape(WARPS * 32, -1).shape[1]
    body = BODY.format(a_words=lanes, b_words=lanes // 2, call=product.call)
    return Micro(
        f"{product.name}_{name}",
        body,
        np.concatenate([a_words, words_of(_accumulator(c), np.float32)]),
        words_of(_accumulator(result), np.float32),
        b=_fragments(b_bits.swapaxes(1, 2)),
        kind="float32",
        allowed=None if exact else _accumulator(bound),
        arch=product.arch,
    )


def _decode(bits: NDArray[np.uint16], product: Product) -> NDArray[np.float64]:
    if product.encode is bfloat16_bits:
        values: NDArray[Any] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = bits.view(np.float16)
    return values.astype(np.float64)


def _fragments(matrix: NDArray[np.uint16]) -> Words:
    """The lanes' words of (warp, row, depth), for A, or of (warp, column, depth), for B.

    Lane 4 g + t holds row g (for A, then row g + 8), elements 2t and 2t + 1, and the same 8 elements further on.
    """
    warps, rows, depth = matrix.shape
    pairs = np.ascontiguousarray(matrix).view(np.uint32).reshape(warps, rows // 8, 8, depth // 8, 4)
    result: Words = pairs.transpose(0, 2, 4, 3, 1).reshape(-1).copy()  # warp, g, t, deeper, lower row
    return result


def _accumulator(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lanes' elements of C (warp, row, column): row g, columns 2t and 2t + 1, then row g + 8."""
    result: NDArray[np.float64] = matrix.reshape(WARPS, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1)
    return result
