"""State dicts from and to other modules: equal outputs, and the way back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faops.errors import ArgumentError
from faops.nn import MultiheadAttention, RotaryEmbedding, convert

E = 48


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("bias", [False, True])
def test_torch_multihead_attention(bias: bool) -> None:
    theirs = nn.MultiheadAttention(E, 4, bias=bias, batch_first=True)
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
        nn.init.normal_(theirs.out_proj.bias)
    ours = MultiheadAttention(E, 4, bias=bias)
    ours.load_state_dict(convert.from_torch(theirs.state_dict()))
    x = torch.randn(3, 11, E)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    padding = torch.arange(11) >= torch.tensor([[11], [4], [7]])  # True is hidden there and visible here
    expected = theirs(x, x, x, need_weights=False, key_padding_mask=padding)[0]
    torch.testing.assert_close(ours(x, key_padding_mask=~padding), expected)
    assert_same(convert.to_torch(ours.state_dict()), theirs.state_dict())


def llama(kind: str) -> tuple[Any, Any, Any]:
    """(config, attention module, rotary module) of transformers, of random weights."""
    transformers = pytest.importorskip("transformers", "5")
    import importlib

    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    name = kind.capitalize()
    config = getattr(transformers, f"{name}Config")(
        hidden_size=E, num_attention_heads=6, num_key_value_heads=2, head_dim=8, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": random.choice((1e4, 5e5))},
        **({"attention_bias": random.random() < 0.5} if kind == "llama" else {}),
    )  # fmt: skip
    attention = getattr(module, f"{name}Attention")(config, layer_idx=0).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return config, attention, getattr(module, f"{name}RotaryEmbedding")(config)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_attention_of_transformers(kind: str) -> None:
    config, theirs, rotary = llama(kind)
    has_bias = theirs.q_proj.bias is not None
    ours = MultiheadAttention(
        E, 6, 2, 8, bias=has_bias, out_bias=theirs.o_proj.bias is not None, causal=True,
        qk_norm=config.rms_norm_eps if kind == "qwen3" else None,
        rotary=RotaryEmbedding(8, config.rope_parameters["rope_theta"]),
    )  # fmt: skip
    ours.load_state_dict(convert.from_llama(theirs.state_dict()))
    x = torch.randn(2, 19, E)
    expected = theirs(x, rotary(x, torch.arange(19)[None]), attention_mask=None)[0]
    torch.testing.assert_close(ours(x), expected)
    assert_same(convert.to_llama(ours.state_dict(), 6, 2), theirs.state_dict())


def test_a_whole_model_is_converted_in_one_call() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 4, 64), 2, enable_nested_tensor=False)
    state = encoder.state_dict()
    ours = convert.from_torch(state)
    assert "layers.1.self_attn.Wqkv.weight" in ours and not any("in_proj" in name for name in ours)
    assert ours["layers.0.linear1.weight"].data_ptr() == state["layers.0.linear1.weight"].data_ptr()
    assert_same(convert.to_torch(ours), state)
    parts = {
        f"model.layers.{index}.self_attn.{part}_proj.weight": torch.randn(8, E) for index in (0, 1) for part in "qkv"
    }
    parts |= {
        "model.layers.0.self_attn.o_proj.weight": torch.randn(E, 8),
        "model.layers.0.mlp.up_proj.weight": torch.ones(1),
    }
    joined = convert.from_llama(parts)
    assert joined["model.layers.1.self_attn.Wqkv.weight"].shape == (24, E)
    assert torch.equal(
        joined["model.layers.1.self_attn.Wqkv.weight"][8:16], parts["model.layers.1.self_attn.k_proj.weight"]
    )
    assert_same(convert.to_llama(joined, 1, 1), parts)


def test_what_has_no_counterpart_is_refused() -> None:
    with pytest.raises(ArgumentError, match="state: got bias_k"):
        convert.from_torch(nn.MultiheadAttention(E, 4, add_bias_kv=True).state_dict())
    with pytest.raises(ArgumentError, match="state: got q_proj_weight"):
        convert.from_torch(nn.MultiheadAttention(E, 4, kdim=8, vdim=8).state_dict())
    with pytest.raises(ArgumentError, match="as many key and value heads as query heads"):
        convert.to_torch(MultiheadAttention(E, 4, 2).state_dict())
    with pytest.raises(ArgumentError, match=r"state: got no a\.v_proj\.weight, expected one beside a\.q_proj\.weight"):
        convert.from_llama({"a.q_proj.weight": torch.ones(2, 2), "a.k_proj.weight": torch.ones(2, 2)})
    with pytest.raises(ArgumentError, match="a multiple of num_heads"):
        convert.to_llama(MultiheadAttention(E, 4, 2).state_dict(), 5, 5)
