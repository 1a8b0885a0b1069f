"""Micro-tests of the arithmetic: special values and random ones, within what the PTX manual promises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.micro import Micro, Words, bfloat16_bits, random_words, words_of

Singles = NDArray[np.float32]

INFINITY, NAN = np.inf, np.nan
TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number
HUGE = float(np.finfo(np.float32).max)
SUBNORMAL = TINY / 4
RANDOM = 192  # random values beside the special ones

UNARY = "for (int i = t; i < count; i += 64) store_global(out_float + i, {}(as_float(load_global(a + i))));"
BINARY = """for (int i = t; i < count; i += 64)
    store_global(out_float + i, {}(as_float(load_global(a + i)), as_float(load_global(b + i))));"""


def arithmetic_micros() -> list[Micro]:
    return [*_approximate(), *_exact(), *_sixteen_bit()]


def _values(seed: int, special: list[float], scale: float = 1.0) -> Singles:
    rng = np.random.default_rng(seed)
    return np.concatenate([special, scale * rng.standard_normal(RANDOM)]).astype(np.float32)


def _flushed(values: NDArray[np.float64] | Singles) -> NDArray[np.float64]:
    """Subnormal numbers of float32 become 0 of their sign."""
    wide = np.asarray(values, dtype=np.float64)
    return np.where(np.abs(wide) < TINY, np.copysign(0.0, wide), wide)


def _units(values: NDArray[np.float64], count: float) -> NDArray[np.float64]:
    """``count`` units in the last place of float32."""
    finite = np.where(np.isfinite(values) & (np.abs(values) <= HUGE), values, 0.0)
    return count * np.spacing(np.abs(finite).astype(np.float32)).astype(np.float64)


def _single(values: NDArray[np.float64]) -> Words:
    return words_of(values, np.float32)


def _approximate() -> list[Micro]:
    special = [0.0, -0.0, SUBNORMAL, -SUBNORMAL, INFINITY, -INFINITY, NAN, 1.0, -1.0, 127.5, 128.0, 1e30, -125.0,
               -126.5, -127.0, -149.0, -150.0, -1e30]  # fmt: skip
    exponents = _values(200, special, 30.0)
    positive = np.exp2(np.random.default_rng(201).uniform(-125, 127, RANDOM))
    near_one = np.random.default_rng(202).uniform(0.5, 2.0, RANDOM)
    special = [0.0, -0.0, SUBNORMAL, -SUBNORMAL, -1.0, INFINITY, -INFINITY, NAN, 1.0, 2.0, 0.5, TINY, HUGE]
    arguments = np.concatenate([special, positive, near_one]).astype(np.float32)
    with np.errstate(all="ignore"):
        powers = _flushed(np.exp2(_flushed(exponents)))
        logarithms = np.log2(_flushed(arguments))
    inside = (arguments > 0.5) & (arguments < 2)
    finite = np.where(np.isfinite(logarithms), np.abs(logarithms), 0.0)
    return [
        Micro("exp2_fast", UNARY.format("exp2_fast"), words_of(exponents, np.float32), _single(powers),
              kind="float32", allowed=_units(powers, 2), count=exponents.size),
        Micro("log2_fast", UNARY.format("log2_fast"), words_of(arguments, np.float32), _single(logarithms),
              kind="float32", allowed=np.where(inside, 2.0**-22, 2.0**-22 * finite), count=arguments.size),
        _quotients(),
    ]  # fmt: skip


def _quotients() -> Micro:
    over = [0.0, 0.0, 1.0, -1.0, INFINITY, INFINITY, 1.0, NAN, 1.0, SUBNORMAL, 1.0, 1.0, HUGE, TINY, 3.0, INFINITY]
    under = [0.0, 1.0, 0.0, 0.0, 1.0, INFINITY, INFINITY, 1.0, NAN, 1.0, SUBNORMAL, 2.0**127, 0.25, 8.0, 3.0, 2.0**127]
    x, y = _values(203, over), _values(204, under)
    with np.errstate(all="ignore"):
        wide, below = _flushed(x), _flushed(y)
        # Above 2^126 the reciprocal of y is 0.
        quotients = np.where((np.abs(below) > 2.0**126) & np.isfinite(below), wide * 0.0, wide / below)
        quotients = _flushed(quotients)
    return Micro(
        "divide_fast", BINARY.format("divide_fast"), words_of(x, np.float32), _single(quotients),
        b=words_of(y, np.float32), kind="float32", allowed=_units(quotients, 2), count=x.size,
    )  # fmt: skip


def _exact() -> list[Micro]:
    special = [0.0, 1.0, -1.0, INFINITY, -INFINITY, NAN, NAN, 2.0, SUBNORMAL, -SUBNORMAL]
    other = [1.0, 0.0, -2.0, 1.0, 1.0, 1.0, NAN, NAN, 0.0, 1.0]
    x, y = _values(210, special), _values(211, other)
    magnitudes = np.concatenate([x, [-0.0]]).astype(np.float32)
    # Numerators of 12 bits: the product is exact in float64, the sum too, and is rounded once.
    rng = np.random.default_rng(212)
    p, q, r = (rng.integers(-4095, 4096, RANDOM).astype(np.float64) for _ in range(3))
    p, q, r = p / 64, q / 512, r * 37.0
    factors, others = random_words(213, 256), random_words(214, 256)
    factors[:4], others[:4] = [0, 1, 2**32 - 1, 2**31], [5, 2**32 - 1, 2**32 - 1, 2]
    bits = random_words(215, 256)
    fused = """for (int i = t; i < count; i += 64) {
    const float x = as_float(load_global(a + i)), y = as_float(load_global(b + i));
    store_global(out_float + i, rounded_product(x, y) + x);
}"""
    with np.errstate(invalid="ignore", over="ignore"):
        twice_rounded = (x * y).astype(np.float32) + x
    return [
        Micro("maximum", BINARY.format("maximum"), words_of(x, np.float32), _single(np.fmax(x, y)),
              b=words_of(y, np.float32), kind="float32", count=x.size),
        Micro("magnitude", UNARY.format("magnitude"), words_of(magnitudes, np.float32), _single(np.abs(magnitudes)),
              kind="float32", count=magnitudes.size),
        Micro("fused_multiply_add", f"""for (int i = t; i < {RANDOM}; i += 64)
    store_global(out_float + i, fused_multiply_add(as_float(load_global(a + i)), as_float(load_global(b + i)),
                                                   as_float(load_global(a + {RANDOM} + i))));""",
              np.concatenate([_single(p), _single(r)]), _single(p * q + r), b=_single(q), kind="float32"),
        Micro("rounded_product", fused, words_of(x, np.float32), _single(twice_rounded), b=words_of(y, np.float32),
              kind="float32", count=x.size),
        Micro("multiply_high", "for (int i = t; i < 256; i += 64) "
              "store_global(out + i, multiply_high(load_global(a + i), load_global(b + i)));", factors,
              (factors.astype(np.uint64) * others.astype(np.uint64) >> np.uint64(32)).astype(np.uint32), b=others),
        Micro("infinity", "store_global(out_float + t, t % 2 ? infinity() : -infinity());", random_words(1, 1),
              _single(np.tile([-INFINITY, INFINITY], 32)), kind="float32"),
        Micro("as_float", "for (int i = t; i < 256; i += 64) "
              "store_global(out_float + i, as_float(load_global(a + i)));", bits, bits, kind="float32"),
        Micro("as_bits", "for (int i = t; i < count; i += 64) "
              "store_global(out + i, as_bits(as_float(load_global(a + i)) * 2.0f));", words_of(x, np.float32),
              _single(x * 2), kind="float32", count=x.size),
    ]  # fmt: skip


def _sixteen_bit() -> list[Micro]:
    """Rounding to nearest even on both sides of a tie, overflow, subnormal results, and all of 16 bits back."""
    special = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, -70000.0, INFINITY, -INFINITY, NAN, 1 + 2.0**-11,
               1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 6.1e-5, 5.9e-8, 2.9e-8, 3.1e-8, -3e-8, HUGE, TINY,
               SUBNORMAL, 3.38e38, 3.4e38]  # fmt: skip
    values = _values(220, special, 100.0)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).view(np.uint16)
    packed = (
        "for (int i = t; i < count; i += 64) "
        "store_global(out + i, {}(as_float(load_global(a + 2 * i)), as_float(load_global(a + 2 * i + 1))));"
    )
    widened = (
        "for (int i = t; i < count; i += 64) "
        "store_global(out_float + i, {}(load_global(reinterpret_cast<const u16*>(a) + i)));"
    )
    pairs = values.size // 2
    bits = np.concatenate([np.arange(0, 2**16, 97), [1, 0x3FF, 0x400, 0x7C00, 0xFC00, 0x7C01, 0x7F80, 0xFFFF]])
    bits = bits[: bits.size // 2 * 2].astype(np.uint16)
    wide_bf16 = bits.astype(np.uint32) << np.uint32(16)
    with np.errstate(invalid="ignore"):
        wide_f16 = words_of(bits.view(np.float16), np.float32)
    words, singles = bits.view(np.uint32), words_of(values, np.float32)
    return [
        Micro("pack_f16", packed.format("pack_f16"), singles, halves.view(np.uint32), kind="float16", count=pairs),
        Micro("pack_bf16", packed.format("pack_bf16"), singles, bfloat16_bits(values).view(np.uint32),
              kind="bfloat16", count=pairs, arch=80),
        Micro("widen_f16", widened.format("widen_f16"), words, wide_f16, kind="float32", count=bits.size),
        Micro("widen_bf16", widened.format("widen_bf16"), words, wide_bf16, kind="float32", count=bits.size),
    ]  # fmt: skip
