"""What the model says of one launch."""

from __future__ import annotations

from typing import NamedTuple


class Estimate(NamedTuple):
    """See :class:`faops.autotune.model.predict.Prediction`, whose fields these are."""

    seconds: float
    occupancy: int
    waves: int
    bound: str
    obstacle: str = ""
