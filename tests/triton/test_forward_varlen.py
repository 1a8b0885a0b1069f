"""Packed sequences in the Triton forward kernel: empty sequences, padding behind the last one, neighbours."""

from __future__ import annotations

import pytest

from tests import edges
from tests.triton.support import BACKEND, TALL_TILES, recorded

pytestmark = pytest.mark.usefixtures("poisoned")

LENGTHS = [*edges.SHORT_LENGTHS, ([16, 17, 1, 0, 40], [17, 16, 0, 3, 35])]


@pytest.mark.parametrize("causal", [False, True])
def test_sequences_are_what_they_are_alone(causal: bool) -> None:
    with recorded():
        for lengths_q, lengths_k in LENGTHS:
            edges.check_sequences_alone(BACKEND, lengths_q, lengths_k, causal, longer=(20,))


def test_rows_behind_the_last_sequence_are_zero() -> None:
    with recorded(TALL_TILES):
        edges.check_rows_behind_the_last_sequence(BACKEND, longest=33, behind=40)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of infinity less infinity
def test_values_of_one_sequence_do_not_reach_another() -> None:
    with recorded():
        edges.check_neighbours(BACKEND, length=30)


def test_dropout_mask_is_the_dense_one() -> None:
    with recorded():
        edges.check_packed_dropout(BACKEND, keys=40)
