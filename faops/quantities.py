"""Times and ratios as people read them."""

from __future__ import annotations

import math


def seconds(value: float | None) -> str:
    """A duration with a unit that suits it, such as ``1.23 ms``; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 else f"{value:.0f} s"
    return f"{value / 1e-9:.3g} ns"


def ratio(value: float | None) -> str:
    """A speed-up, such as ``1.34x``; "-" for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}x"


def percent(part: float) -> str:
    """A part of one, such as ``2.1 %``."""
    return f"{100 * part:.1f} %"


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun, such as ``3 configs``."""
    return f"{count} {one if count == 1 else many}"
