"""Every feature of a KV-cache call through the npu kernels and the contract double: right, or refused with reasons."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch

from tests.kvcache import FEATURES, Call, compatible, make_call
from tests.npu import cachecalls, double
from tests.npu.matrix import refusal
from tests.npu.support import ascend

DTYPES = (torch.float16, torch.bfloat16)
REFUSED = ("softcap", "alibi", "alibi_batch", "value_dim")
OLD = ("2.1.0.post17", "2.5.1.post1", "2.6.0.post5")  # another cache mode alone; no version 2 and no writing of pages


def run(*features: str, with_lse: bool = True, dtypes: Sequence[torch.dtype] = DTYPES, **shape: int) -> str:
    """The op that is refused, or "". Each run gets a call of its own, as a call writes into its caches."""
    seed = random.getrandbits(31)
    dtype = random.choice(dtypes)

    def made() -> Call:
        random.seed(seed)
        torch.manual_seed(seed)
        return make_call(*features, dtype=dtype, **{"dim": 64, "dim_v": 64, **shape})

    return refusal(lambda backend: cachecalls.check(made(), backend, with_lse=with_lse))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", FEATURES)
def test_one_feature(npu: double.Handle, name: str, rows: int) -> None:
    assert run(name, M=rows) == ("decode" if name in REFUSED else "")
    assert (name in REFUSED) != any("infer_attention" in operator for operator, _ in npu.calls)


@pytest.mark.parametrize(("rows", "page"), [(1, 16), (1, 128), (3, 128), (129, 128), (1, 1), (2, 65)])
@pytest.mark.parametrize("features", [("append", "causal"), ("rotary_half", "append", "window"), ("sinks",)])
def test_pages(npu: double.Handle, features: tuple[str, ...], rows: int, page: int) -> None:
    assert run("paged", *features, M=rows, page=page, keys=130) == ""


def pairs() -> list[tuple[str, str]]:
    names = [name for name in FEATURES if name not in REFUSED]
    return [pair for pair in itertools.combinations(names, 2) if compatible(pair)]


@pytest.mark.parametrize("first", [name for name in FEATURES if name not in REFUSED])
def test_pairs(npu: double.Handle, first: str) -> None:
    """Each pair with one or three rows; both of them with --full."""
    for pair in pairs():
        if pair[0] == first:
            run(*pair, M=random.choice((1, 3)), keys=20)


@pytest.mark.parametrize("soc", ["310P", "910B", "910C", "950"])
@pytest.mark.parametrize("rows", [1, 2])
def test_chips_without_lse(soc: str, rows: int) -> None:
    """Without lse the older operators do, which are all that the 310P has."""
    with ascend(soc=soc):
        refused = run("append", M=rows, with_lse=False, dtypes=(torch.float16,))
    assert refused == ("decode" if soc == "310P" and rows > 1 else "")


@pytest.mark.parametrize("version", OLD)
def test_older_versions(version: str) -> None:
    with ascend(version) as handle:
        for features in (("append",), ("paged", "append", "causal"), ("rotary", "append"), ("leftpad", "mask")):
            assert run(*features, M=random.choice((1, 3))) == ""
        known = double.recorded(version)
        assert handle.calls and all(operator in known for operator, _ in handle.calls)


@pytest.mark.full
@pytest.mark.parametrize("version", double.VERSIONS)
def test_every_version(version: str) -> None:
    with ascend(version):
        for pair in pairs():
            for rows in (1, 3):
                run(*pair, M=rows, keys=40)
