"""Every feature of attention through the npu kernels and the contract double: right, or refused with reasons.

The results hold as far as the documents of the operators do: contract-verified, not hardware-verified.
"""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tests import support
from tests.npu import double
from tests.npu.matrix import refusal
from tests.npu.support import ascend
from tests.support import FEATURES, Case, compatible, covering_sets, make_case

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32)
# What the operators have no argument for, or none that gives the same result: refused in forward or in backward.
REFUSED = {
    "softcap": "forward",
    "dropout": "forward",
    "alibi": "forward",  # of lengths that differ, in 16 bits: only slopes for equal ones are computed in float32
    "alibi_batch": "forward",
    "lse_grad": "backward",
    "bias": "backward",  # its gradient
    "deterministic": "backward",
}
OLD = ("2.5.1.post1", "2.6.0.post5")  # without sinks, and without version 3
OPERATORS = tuple(name for name in FEATURES if name not in REFUSED)  # what the operators have, both ways
# No mask suits every packed sequence: these two are refused together. All other pairs are in these sets.
TAKEN = [
    *covering_sets(tuple(name for name in OPERATORS if name != "mask")),
    *covering_sets(tuple(name for name in OPERATORS if name != "varlen")),
]


def run(case: Case, *, backward: bool = True) -> str:
    return refusal(lambda backend: support.check(case, backend, backward=backward))


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain(npu: double.Handle, dtype: torch.dtype) -> None:
    assert run(make_case(dtype=dtype)) == ""
    assert any("fusion_attention_grad" in operator for operator, _ in npu.calls)


@pytest.mark.parametrize("name", FEATURES)
def test_one_feature(npu: double.Handle, name: str) -> None:
    case = make_case(name, dtype=random.choice(HALVES if name.startswith("alibi") else DTYPES))
    assert run(case) == REFUSED.get(name, "")
    assert REFUSED.get(name) == "forward" or npu.calls


@pytest.mark.parametrize("name", ["alibi", "alibi_batch"])
def test_slopes_of_equal_lengths_or_in_float32(npu: double.Handle, name: str) -> None:
    assert run(make_case(name, seqlen_q=33, seqlen_k=33, dtype=random.choice(HALVES))) == ""
    assert run(make_case(name, dtype=torch.float32)) == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", TAKEN, ids="-".join)
def test_pairs_that_are_taken(npu: double.Handle, features: tuple[str, ...], dtype: torch.dtype) -> None:
    support.check(make_case(*features, dtype=dtype), "npu")
    assert npu.calls


@pytest.mark.parametrize("features", covering_sets(tuple(FEATURES)), ids="-".join)
def test_pairs(npu: double.Handle, features: tuple[str, ...]) -> None:
    run(make_case(*features, dtype=random.choice(DTYPES)), backward="dropout" not in features)


@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("features", [("sinks",), ("causal", "gqa"), ("varlen", "window"), ("mask", "bhsd")])
def test_older_versions(version: str, features: tuple[str, ...]) -> None:
    with ascend(version) as handle:
        assert run(make_case(*features, dtype=random.choice(HALVES))) == ""
        # Operators for inference may stand in for a sink that training's do not know, but in 16 bits only.
        no_sink = features == ("sinks",) and version.startswith("2.5")
        assert run(make_case(*features, dtype=torch.float32)) == ("forward" if no_sink else "")
        known = double.recorded(version)
        assert all(operator in known for operator, _ in handle.calls)


@pytest.mark.parametrize("soc", ["910C", "950", "310P"])
def test_other_chips(soc: str) -> None:
    """The first has the same operators, the second some of them and the third those for inference alone."""
    with ascend(soc=soc) as handle:
        for features in ((), ("varlen", "causal"), ("sinks",)):
            no_sink = soc == "950" and "sinks" in features
            refused = run(make_case(*features, dtype=torch.float32 if no_sink else torch.float16))
            assert refused == ("forward" if soc == "310P" or no_sink else "")
        assert soc == "310P" or handle.calls


@pytest.mark.parametrize("size", [1, 127, 129])
def test_odd_sizes(npu: double.Handle, size: int) -> None:
    other = random.choice((1, 63, 65))
    for features in (("causal",), ("window", "gqa"), ("varlen", "causal")):
        assert run(make_case(*features, seqlen_q=size, seqlen_k=other, dtype=torch.float16)) == ""


@pytest.mark.parametrize(("rows", "keys", "batch"), [(0, 5, 2), (5, 0, 2), (5, 5, 0), (0, 0, 1)])
@pytest.mark.parametrize("varlen", [False, True])
def test_sizes_of_zero(npu: double.Handle, rows: int, keys: int, batch: int, varlen: bool) -> None:
    if varlen and batch < 2:
        batch = 2
    features = ("varlen",) if varlen else ()
    case = make_case(*features, dtype=torch.float16)
    case.seqlen_q, case.seqlen_k, case.batch = rows, keys, batch
    assert run(case) == ""


@pytest.mark.full
@pytest.mark.parametrize("features", covering_sets(tuple(FEATURES)), ids="-".join)
@pytest.mark.parametrize("version", double.VERSIONS)
def test_every_version(version: str, features: tuple[str, ...]) -> None:
    with ascend(version):
        for dtype in DTYPES:
            run(make_case(*features, dtype=dtype), backward="dropout" not in features)


@pytest.mark.full
@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("version", double.VERSIONS)
def test_every_feature_of_every_version(version: str, name: str) -> None:
    with ascend(version):
        for size in (1, 65, 257):
            for other in (63, 129):
                run(make_case(name, seqlen_q=size, seqlen_k=other, dtype=random.choice(DTYPES)))


def test_every_pair_is_somewhere() -> None:
    """Of the features that the operators have, each compatible pair but the one is in a set that they take."""
    for pair in itertools.combinations(OPERATORS, 2):
        together = any(set(pair) <= set(features) for features in TAKEN)
        assert together == (compatible(pair) and set(pair) != {"varlen", "mask"}), pair
