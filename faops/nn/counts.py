"""Numbers that callers of the caches give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np
import numpy.typing as npt

from faops.errors import ArgumentError


def check_size(name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArgumentError(name, repr(size), "an int of at least 1")


def as_counts(name: str, counts: int | Sequence[int], sequences: int) -> npt.NDArray[np.int64]:
    """A number of 0 or more for each sequence; a single one stands for all. Raises ArgumentError."""
    listed = list(counts) if isinstance(counts, Iterable) else [counts] * sequences
    if len(listed) != sequences:
        raise ArgumentError(name, f"{len(listed)} numbers", f"one for each of {sequences} sequences, or an int")
    for count in listed:
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise ArgumentError(name, repr(count), "ints of 0 or more")
    return np.array(listed, dtype=np.int64)
