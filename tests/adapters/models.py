"""Tiny models with random weights, one for each feature that an attention implementation has to serve."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: transformers)")
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

VOCABULARY, WINDOW = 64, 6
# Large weights make the scores spread, so that a wrong mask, window or scale shows in the logits.
SPREAD = 0.4
# Two layers with such weights amplify a rounding of 1e-7 some hundred times; a wrong mask is off by 0.1 and more.
ROUNDING = 1e-4

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": SPREAD,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"]


def since(*version: int) -> pytest.MarkDecorator:
    """Skips a test of what transformers can do since ``version``."""
    reason = f"transformers {transformers.__version__} is older than {'.'.join(map(str, version))}"
    return pytest.mark.skipif(version > VERSION, reason=reason)


def llama() -> Any:
    """Grouped queries."""
    return transformers.LlamaConfig(**COMMON)


def mistral() -> Any:
    """A sliding window in every layer."""
    return transformers.MistralConfig(**COMMON, sliding_window=WINDOW)


def qwen2() -> Any:
    """A sliding window in some layers, biases in the projections."""
    return transformers.Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING)


def gemma2() -> Any:
    """Softcap, a scale of its own, alternating windows."""
    return transformers.Gemma2Config(
        **COMMON,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        attn_logit_softcapping=3.0,
        query_pre_attn_scalar=5,
    )


def gemma3() -> Any:
    """Normalised queries and keys, two rotary bases."""
    return transformers.Gemma3TextConfig(
        **COMMON, head_dim=8, sliding_window=WINDOW, layer_types=ALTERNATING, query_pre_attn_scalar=8
    )


def gpt_oss() -> Any:
    """A learned sink for every head, alternating windows."""
    if VERSION < (4, 55):
        pytest.skip(f"transformers {transformers.__version__} has no gpt-oss")
    return transformers.GptOssConfig(
        **COMMON,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        num_local_experts=2,
        num_experts_per_tok=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def gpt2() -> Any:
    """Absolute positions, no grouped queries."""
    return transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=SPREAD,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def llama4() -> Any:
    """Chunked attention, which has no band and needs an evaluated mask."""
    return transformers.Llama4TextConfig(
        **COMMON, head_dim=8, attention_chunk_size=WINDOW, num_local_experts=2, intermediate_size_mlp=48,
        layer_types=["chunked_attention", "full_attention"],
    )  # fmt: skip


DECODERS: dict[str, Callable[[], Any]] = {
    make.__name__: make for make in (llama, mistral, qwen2, gemma2, gemma3, gpt_oss, gpt2, llama4)
}


def pair(config: Any, head: str = "AutoModelForCausalLM") -> tuple[Any, Any]:
    """The same random model with eager attention and with faops, both for evaluation."""
    auto = getattr(transformers, head)
    models = [auto.from_config(copy.deepcopy(config), attn_implementation=name).eval() for name in ("eager", "faops")]
    eager, ours = models
    with torch.no_grad():
        for name, parameter in eager.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
    ours.load_state_dict(eager.state_dict())
    assert eager.config._attn_implementation == "eager"
    assert ours.config._attn_implementation == "faops"
    return eager, ours


def tokens(batch: int, length: int) -> Tensor:
    """Random token ids without the special ones."""
    return torch.randint(3, VOCABULARY, (batch, length))


def padding(kind: str, batch: int, length: int) -> Tensor | None:
    """A 2-D attention mask: "none", "ones", "left", "right", or "holes" with hidden keys in the middle of a row."""
    if kind == "none":
        return None
    mask = torch.ones(batch, length, dtype=torch.long)
    if kind == "ones":
        return mask
    mask[0, : length // 2] = 0
    mask[1, :1] = 0
    if kind == "right":
        return mask.flip(1)
    if kind == "holes":
        mask[2, length // 3 : length // 2] = 0
    return mask


def close(ours: Tensor, eager: Tensor, rows: Tensor | None = None) -> None:
    """Equal within float32 rounding, relative to the largest element, at the rows that are not padding."""
    if rows is not None:
        ours, eager = ours[rows.bool()], eager[rows.bool()]
    error, allowed = (ours - eager).abs().max().item(), ROUNDING * eager.abs().max().item()
    assert error <= allowed, f"error {error}, allowed {allowed}"  # also fails for NaN


def close_gradients(ours: Any, eager: Any) -> None:
    """Every parameter has the same gradient, within rounding relative to the largest element."""
    for (name, theirs), (_, mine) in zip(eager.named_parameters(), ours.named_parameters()):
        if theirs.grad is None:  # such as an expert that no token reached
            assert mine.grad is None, name
            continue
        allowed = 10 * ROUNDING * theirs.grad.abs().max().item()
        error = (mine.grad - theirs.grad).abs().max().item()
        assert error <= allowed, f"{name}: error {error}, allowed {allowed}"
