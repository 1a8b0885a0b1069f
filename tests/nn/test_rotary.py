"""RotaryEmbedding: against complex numbers in float64, transformers' own tables, and its own rules."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from faops.errors import ArgumentError
from faops.nn import RotaryEmbedding
from faops.nn.frequencies import frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn_keys": {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 20.0,
        "beta_slow": 2.0, "attention_factor": 1.1, "truncate": False,
    },
    "yarn_short": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096},
}  # fmt: skip


def turned(x: Tensor, positions: Tensor, rotary: RotaryEmbedding) -> Tensor:
    """(B, S, H, D) rotated as complex numbers, in float64."""
    half = rotary.dim // 2
    turns, factor = frequencies(rotary.dim, rotary.base, rotary.scaling)
    angles = (positions[..., None].float() * turns).double()[:, :, None, :]
    x = x.double()
    if rotary.interleaved:
        real, imaginary = x[..., 0 : rotary.dim : 2], x[..., 1 : rotary.dim : 2]
    else:
        real, imaginary = x[..., :half], x[..., half : rotary.dim]
    result = torch.complex(real, imaginary) * torch.polar(torch.full_like(angles, factor), angles)
    pairs = torch.stack([result.real, result.imag], -1 if rotary.interleaved else -2).flatten(-2)
    return torch.cat([pairs, x[..., rotary.dim :]], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_that_of_complex_numbers(interleaved: bool, dtype: torch.dtype, poisoned: None) -> None:
    head_dim = random.choice((24, 40))
    rotary = RotaryEmbedding(random.choice((2, 10, 24)), base=random.uniform(50, 1e5), interleaved=interleaved)
    x = torch.randn(3, 17, 2, head_dim).to(dtype)
    positions = torch.randint(0, 700, (3, 17))
    exact = turned(x, positions, rotary)
    bound = 4 * torch.finfo(dtype).eps * float(exact.abs().max())
    for result in (rotary(x, positions), rotary(x, positions, length=700)):
        assert result.dtype == dtype
        assert float((result.double() - exact).abs().max()) < bound
    packed = rotary(x[1], positions[1])
    torch.testing.assert_close(packed, rotary(x, positions)[1], rtol=0, atol=0)
    torch.testing.assert_close(rotary(x, positions[0]), rotary(x, positions[:1].expand(3, 17)), rtol=0, atol=0)


def test_positions_count_from_zero_unless_given() -> None:
    rotary, x = RotaryEmbedding(8), torch.randn(2, 13, 3, 16)
    torch.testing.assert_close(rotary(x), rotary(x, torch.arange(13)), rtol=0, atol=0)


def test_scores_depend_on_distance_alone() -> None:
    rotary = RotaryEmbedding(32)
    q, k = torch.randn(1, 1, 1, 32).double(), torch.randn(1, 1, 1, 32).double()

    def score(i: int, j: int) -> float:
        return float((rotary(q, torch.tensor([[i]])) * rotary(k, torch.tensor([[j]]))).sum())

    shift = random.randint(1, 300)
    assert score(40, 7) == pytest.approx(score(40 + shift, 7 + shift), abs=1e-3)
    assert score(40, 7) != pytest.approx(score(41, 7), abs=1e-3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_gradient_is_the_inverse_rotation(interleaved: bool) -> None:
    rotary = RotaryEmbedding(12, interleaved=interleaved)
    x, weights = torch.randn(2, 9, 2, 16, requires_grad=True), torch.randn(2, 9, 2, 16)
    positions = torch.randint(0, 90, (2, 9))
    (gradient,) = torch.autograd.grad(rotary(x, positions), x, weights)
    torch.testing.assert_close(rotary(gradient, positions), weights)


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", "5")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling, base, dim = SCALINGS[name], random.choice((10000.0, 500000.0)), random.choice((64, 96))
    config = transformers.LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", **(scaling or {}), "rope_theta": base},
    )  # fmt: skip
    length = 5000
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])
    ours = RotaryEmbedding(dim, base, scaling=config.rope_parameters).tables(length)
    # A frequency may differ by a unit in the last place, which the position multiplies.
    bound = 2 * length * torch.finfo(torch.float32).eps
    for expected, actual in zip((cos[0], sin[0]), ours):
        assert actual.dtype == torch.float32
        assert actual.shape == (length, dim // 2)
        assert float((actual - expected[:, : dim // 2]).abs().max()) < bound
    assert cos.abs().max() > 0.4


def test_plain_tables_are_those_of_transformers_bit_for_bit() -> None:
    pytest.importorskip("transformers", "5")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=1, rope_parameters={"rope_theta": 1e5, "rope_type": "default"}
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(3000)[None])
    ours = RotaryEmbedding(64, 1e5).tables(3000)
    assert torch.equal(ours[0], cos[0, :, :32])
    assert torch.equal(ours[1], sin[0, :, :32])


def test_tables_grow_and_stay_float32_when_a_model_is_cast() -> None:
    rotary = RotaryEmbedding(16).to(torch.bfloat16)
    short = rotary.tables(10)
    long = rotary.tables(1000)
    assert short[0].dtype == torch.float32
    assert [len(table) for table in (*short, *long)] == [10, 10, 1000, 1000]
    assert torch.equal(short[0], long[0][:10])
    assert torch.equal(short[1], long[1][:10])
    assert rotary.tables(3, torch.float16)[0].dtype == torch.float16
    assert rotary.tables(0)[0].shape == (0, 8)
    for length in (1024, 1025, 2049):  # from one position too few
        assert len(rotary.tables(length)[0]) == length
    assert not rotary.state_dict() and not list(rotary.buffers())


def test_tables_made_in_inference_mode_serve_training() -> None:
    rotary, x = RotaryEmbedding(8), torch.randn(1, 5, 1, 8, requires_grad=True)
    with torch.inference_mode():
        rotary(x)
    rotary(x).sum().backward()
    assert x.grad is not None


def test_tables_of_a_copy_are_equal() -> None:
    rotary = RotaryEmbedding(8, base=100.0)
    rotary.tables(300)
    assert torch.equal(copy.deepcopy(rotary).tables(600)[0][:300], rotary.tables(300)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dim": 7}, "dim: got 7, expected an even number"),
        ({"dim": 0}, "dim: got 0"),
        ({"dim": 8, "base": 0.0}, "base: got 0.0"),
        ({"dim": 8, "scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaling: got rope_type 'dynamic'"),
        ({"dim": 8, "scaling": {"rope_type": "linear"}}, "scaling: got linear without factor"),
        ({"dim": 8, "scaling": {"type": "yarn", "factor": 2.0}}, "without original_max_position_embeddings"),
        ({"dim": 8, "scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 1.0}}, "linear with mscale"),
    ],
)
def test_what_it_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        RotaryEmbedding(**arguments)


def test_what_a_call_refuses() -> None:
    rotary = RotaryEmbedding(8)
    with pytest.raises(ArgumentError, match="a head_dim of at least 8"):
        rotary(torch.randn(1, 2, 1, 6))
    with pytest.raises(ArgumentError, match="positions"):
        rotary(torch.randn(1, 2, 1, 8), torch.arange(3))
    with pytest.raises(ArgumentError, match="positions"):
        rotary(torch.randn(1, 2, 1, 8), torch.arange(2.0))
    with pytest.raises(ArgumentError, match="x: got"):
        rotary(torch.randn(2, 8))


def test_it_prints_what_it_is() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert repr(RotaryEmbedding(8)) == "RotaryEmbedding(8, base=10000, half)"
    assert "interleaved, scaling={'rope_type': 'linear'" in repr(RotaryEmbedding(8, interleaved=True, scaling=scaling))
