"""Configs of the Ascend kernel: legal ones, the default among them, and those that triton-ascend's tutorial runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from faops.backends.triton.ascend import space
from faops.backends.triton.ascend.space import make_config
from faops.problem import AttentionProblem, Band
from tests.triton.ascend.support import NPU

PLAIN: dict[str, Any] = {"seqlen_q": 512, "seqlen_k": 512, "heads_q": 4, "heads_kv": 2, "band": Band(right=0)}
EVERYTHING = {"softcap": True, "alibi": True, "bias": "bhmn", "mask": "bhmn", "sinks": True}


def problem_of(head_dim: int, **changes: Any) -> AttentionProblem:
    return AttentionProblem(**{**PLAIN, "head_dim": head_dim, "head_dim_v": head_dim, **changes})


@pytest.mark.parametrize("features", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("head_dim", [1, 16, 40, 64, 128, 256])
def test_every_config_is_legal(head_dim: int, dtype: str, features: dict[str, Any]) -> None:
    problem = problem_of(head_dim, dtype=dtype, **features)
    found = space.forward_space(problem, NPU)
    assert found[0] == space.forward_default(problem, NPU) and len(set(found)) == len(found) and len(found) >= 9
    for config in found:
        rows, keys = config.integer("block_m"), config.integer("block_n")
        assert rows % 16 == keys % 16 == 0 and rows <= 256 and keys <= 256
        assert rows & (rows - 1) == keys & (keys - 1) == 0
        assert space.unified_bytes(config, problem) <= 192 * 1024
        assert 4 * rows * max(keys, head_dim) <= 128 * 1024
        assert config["programs"] in (NPU.units, 2 * NPU.units)
    assert {config["multibuffer"] for config in found} == {True, False}


# Tiles of the tutorial 04-fused-attention (and of test_fusedattention.py), which pass there on an NPU.
TUTORIAL = [(32, 128, 128), (64, 128, 128), (32, 256, 256), (64, 128, 256), (32, 64, 64), (64, 128, 64), (128, 128, 64)]


@pytest.mark.parametrize(("rows", "keys", "head_dim"), TUTORIAL)
def test_what_runs_in_the_tutorial_fits(rows: int, keys: int, head_dim: int) -> None:
    problem = problem_of(head_dim)
    config = make_config(rows, keys, 20)
    assert space.fits(config, problem)
    largest = max(one.integer("block_m") * one.integer("block_n") for one in space.forward_space(problem, NPU))
    if rows * keys * space.SMALLEST >= largest:
        assert config in space.forward_space(problem, NPU)


def test_what_does_not_fit() -> None:
    problem = problem_of(128)
    assert not space.fits(make_config(128, 256, 20), problem)  # 128 KB of scores a vector core
    assert not space.fits(make_config(128, 128, 20), problem) and space.fits(make_config(128, 128, 20, False), problem)
    assert not space.fits(make_config(16, 256, 20), problem_of(256, dtype="float32"))  # 1 MB of keys and values in L1


def test_every_feature_takes_room() -> None:
    config = make_config(64, 128, 20)
    bare = space.unified_bytes(config, problem_of(64))
    for name in ("softcap", "alibi", "bias", "mask"):
        assert space.unified_bytes(config, problem_of(64, **{name: EVERYTHING[name]})) > bare
    assert space.unified_bytes(make_config(64, 128, 20, False), problem_of(64)) < bare


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 512), (512, 1), (17, 33), (0, 0)])
def test_short_sequences(rows: int, keys: int) -> None:
    """No tile has twice the rows or keys that there are."""
    for config in space.forward_space(problem_of(64, seqlen_q=rows, seqlen_k=keys), NPU):
        assert config.integer("block_m") < max(17, 2 * rows) and config.integer("block_n") < max(33, 2 * keys)


def test_default() -> None:
    assert space.forward_default(problem_of(64), NPU) == make_config(128, 128, NPU.units)
    assert space.forward_default(problem_of(128), NPU) == make_config(64, 128, NPU.units)
    assert space.forward_default(problem_of(128), replace(NPU, units=0))["programs"] == space.CORES
    most = replace(NPU, units=60000)
    assert {config["programs"] for config in space.forward_space(problem_of(128), most)} == {60000, 65535}
