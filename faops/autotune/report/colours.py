"""The colours of a heat map: dark blue for the fastest, pale for slow, in one order of lightness.

Lightness alone tells the order, so that the scale reads the same with any colour vision and in grey.
"""

from __future__ import annotations

import math

Colour = tuple[int, int, int]

SLOWEST = 4.0  # times as slow as the fastest and more get the last colour
STOPS: tuple[Colour, ...] = ((16, 46, 96), (42, 102, 148), (116, 164, 182), (194, 210, 200), (246, 240, 220))


def position(time: float, best: float) -> float:
    """Where a time stands between ``best`` (0.0) and SLOWEST times as much (1.0), by the logarithm."""
    if not (time > 0 and best > 0):
        return 1.0
    return min(1.0, max(0.0, math.log(time / best) / math.log(SLOWEST)))


def colour(place: float) -> Colour:
    """The colour at a place from 0.0 (fastest) to 1.0."""
    scaled = min(1.0, max(0.0, place)) * (len(STOPS) - 1)
    index = min(int(scaled), len(STOPS) - 2)
    part = scaled - index
    red, green, blue = (round(low + part * (high - low)) for low, high in zip(STOPS[index], STOPS[index + 1]))
    return red, green, blue


def text_on(background: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour: always at a contrast of 4.5 or more."""
    black, white = contrast((0, 0, 0), background), contrast((255, 255, 255), background)
    return (0, 0, 0) if black >= white else (255, 255, 255)


def contrast(one: Colour, other: Colour) -> float:
    """Contrast of two colours, from 1 to 21, as the Web Content Accessibility Guidelines 2.2 define it."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(value: Colour) -> float:
    """Relative luminance of an sRGB colour, from 0 to 1."""
    red, green, blue = (_linear(channel / 255) for channel in value)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def hexadecimal(value: Colour) -> str:
    """A colour as a style sheet writes it."""
    return "#{:02x}{:02x}{:02x}".format(*value)
