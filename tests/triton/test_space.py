"""Configs of the Triton kernels: legal on every card, the default among them, and none unordered where order counts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from faops import registry
from faops.backends.triton import space, specialize
from faops.device import detect, known
from faops.problem import AttentionProblem

CARDS = ("a100", "3090", "4090", "h100", "b200", "5090")
PROBLEM = AttentionProblem(
    dtype="float16", batch=2, heads_q=4, heads_kv=4, seqlen_q=2048, seqlen_k=2048, head_dim=64, head_dim_v=64
)
SHARED = {"triton.forward": space.forward_shared_bytes, "triton.backward": space.backward_shared_bytes}
TILE_SIZES = ("block_m", "block_n", "block_outer", "block_inner")


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("kernel_id", SHARED)
def test_every_config_fits_the_card(kernel_id: str, card: str) -> None:
    kernel, device = registry.get(kernel_id), known(card)
    assert kernel is not None
    dims = (8, 33, 64, 80, 96, 128, 192, 256)
    for dtype, dim, dim_v, length in itertools.product(("float16", "float32"), dims, (64, 256), (1, 40, 4096)):
        problem = replace(PROBLEM, dtype=dtype, op=kernel.op, head_dim=dim, head_dim_v=dim_v, seqlen_q=length)
        configs = kernel.configs(problem, device)
        assert kernel.default_config(problem, device) in configs
        assert len(set(configs)) == len(configs)
        for config in configs:
            assert SHARED[kernel_id](config, problem) <= device.limits.shared_per_block, (problem, config)
            sizes = [config.integer(name) for name in TILE_SIZES if name in config]
            assert len(sizes) == 2
            assert all(size & (size - 1) == 0 and 16 <= size <= specialize.LARGEST_TILE for size in sizes)


@pytest.mark.parametrize("kernel_id", SHARED)
def test_there_is_something_to_tune_on_a_card_and_nothing_on_a_cpu(kernel_id: str) -> None:
    kernel = registry.get(kernel_id)
    assert kernel is not None
    problem = replace(PROBLEM, op=kernel.op)
    assert len(kernel.configs(problem, known("h100"))) > 5
    assert kernel.configs(problem, detect("cpu")) == [kernel.default_config(problem, detect("cpu"))]


@pytest.mark.parametrize("card", CARDS)
def test_deterministic_problems_have_no_atomic_config(card: str) -> None:
    kernel = registry.get("triton.backward")
    assert kernel is not None
    for dtype in ("float16", "bfloat16", "float32"):
        problem = replace(PROBLEM, op="backward", need_lse=True, dtype=dtype)
        free = kernel.configs(problem, known(card))
        ordered = kernel.configs(replace(problem, deterministic=True), known(card))
        assert any(config["atomic_dq"] for config in free)
        assert not any(config["atomic_dq"] for config in ordered)
        assert not kernel.default_config(problem, known(card))["atomic_dq"]
        assert problem.key() != replace(problem, deterministic=True).key()


def test_few_rows_make_small_tiles() -> None:
    for rows, expected in ((1, 16), (16, 16), (17, 32), (64, 64), (100, 128), (5000, 128)):
        config = space.forward_default(replace(PROBLEM, seqlen_q=rows), known("a100"))
        assert config["block_m"] == expected


@pytest.mark.parametrize(("head_dim", "expected"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (192, 256)])
def test_width(head_dim: int, expected: int) -> None:
    assert specialize.width(head_dim) == expected
