"""Packed sequences in the raw CUDA forward kernels: features, empty sequences, padding behind the last one."""

from __future__ import annotations

import random

import pytest
import torch

from tests import edges
from tests.cuda_raw.support import BACKEND, KERNELS, check_on, emulated, rotate
from tests.support import FORWARD, make_case

pytestmark = pytest.mark.usefixtures("poisoned", "emulator_here")

each_card = pytest.mark.parametrize("card", KERNELS)


@pytest.mark.full
@rotate(["plain", *(name for name in FORWARD if name != "varlen")], "feature")
def test_feature_alone(card: str, dtype: torch.dtype, feature: str) -> None:
    features = ["varlen"] if feature == "plain" else ["varlen", feature]
    check_on(card, make_case(*features, dtype=dtype, seqlen_q=random.randint(1, 140), seqlen_k=random.randint(1, 140)))


@rotate([("varlen",), ("varlen", "gqa", "causal"), ("varlen", "alibi_batch", "bias", "mask", "dropout")], "features")
def test_features(card: str, dtype: torch.dtype, features: tuple[str, ...]) -> None:
    check_on(card, make_case(*features, dtype=dtype, seqlen_q=140, seqlen_k=random.randint(66, 200)))


LENGTHS = [*edges.SHORT_LENGTHS, ([64, 65, 1, 0, 130], [65, 64, 0, 3, 70])]


@each_card
@pytest.mark.parametrize("causal", [False, True])
def test_sequences_are_what_they_are_alone(card: str, causal: bool) -> None:
    with emulated(card):
        for lengths_q, lengths_k in LENGTHS:
            edges.check_sequences_alone(BACKEND, lengths_q, lengths_k, causal, longer=(0, 70))


@each_card
def test_rows_behind_the_last_sequence_are_zero(card: str) -> None:
    with emulated(card):
        edges.check_rows_behind_the_last_sequence(BACKEND, longest=70, behind=90)


@each_card
def test_values_of_one_sequence_do_not_reach_another(card: str) -> None:
    with emulated(card):
        edges.check_neighbours(BACKEND, length=70)


@each_card
def test_dropout_mask_is_the_dense_one(card: str) -> None:
    with emulated(card):
        edges.check_packed_dropout(BACKEND, keys=70)


@pytest.mark.full
@rotate([1, 40, 96, 256], "head_dim")
def test_head_dims(card: str, dtype: torch.dtype, head_dim: int) -> None:
    shape = {"head_dim": head_dim, "head_dim_v": 24, "seqlen_q": 140, "seqlen_k": 90}
    check_on(card, make_case("varlen", "causal", dtype=dtype, **shape))
