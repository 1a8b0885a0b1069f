"""The colours of the heat map: in order, and readable."""

from __future__ import annotations

import pytest

from faops.autotune.report.colours import SLOWEST, colour, contrast, hexadecimal, luminance, position, text_on

PLACES = [step / 200 for step in range(201)]


def test_position_is_logarithmic_and_ends() -> None:
    assert position(1.0, 1.0) == 0.0
    assert position(SLOWEST, 1.0) == position(100.0, 1.0) == 1.0
    assert position(SLOWEST**0.5, 1.0) == pytest.approx(0.5)
    assert position(0.5, 1.0) == 0.0  # faster than the winner, in a short timing
    assert position(0.0, 1.0) == 1.0


def test_slower_is_always_lighter() -> None:
    lights = [luminance(colour(place)) for place in PLACES]
    assert lights == sorted(lights)
    assert lights[-1] - lights[0] > 0.7


def test_text_can_be_read_on_every_colour() -> None:
    assert min(contrast(text_on(colour(place)), colour(place)) for place in PLACES) >= 4.5


def test_contrast_and_hexadecimal() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)
    assert hexadecimal((1, 171, 255)) == "#01abff"
    assert colour(-1.0) == colour(0.0)
    assert colour(2.0) == colour(1.0)
