"""A Llama of Hugging Face transformers, run over a paged cache.

Embedding, norms, projections and MLPs are the model's own modules. Only attention is not: it goes through the pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from faops.nn import PagedKVCache, RotaryEmbedding


class PagedLlama:
    """Reads new tokens of several sequences at once and tells what comes after each sequence."""

    def __init__(self, model: nn.Module, pages: int, page_size: int = 16) -> None:
        config: Any = model.config
        self.head_dim = config.head_dim
        self.decoder, self.lm_head = model.model, model.lm_head
        self.rotary = rotary_of(config)
        self.cache = PagedKVCache(
            pages, page_size, config.num_key_value_heads, self.head_dim,
            layers=config.num_hidden_layers, dtype=model.dtype, device=model.device,
        )  # fmt: skip

    @torch.inference_mode()
    def read(self, sequences: Sequence[Any], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append ``tokens[i]`` to ``sequences[i]``, for all i in one pass; prompts and single tokens mix freely.

        Returns the logits of the token that follows each sequence, (sequences, vocabulary). Raises OutOfPagesError
        if there is no room for all of them; then nothing has changed.
        """
        step = self.cache.append(sequences, [len(new) for new in tokens])
        packed = torch.tensor([token for new in tokens for token in new], device=self.decoder.device)
        hidden = self.decoder.embed_tokens(packed)
        for index, layer in enumerate(self.decoder.layers):
            hidden = hidden + self.attention(index, layer.self_attn, layer.input_layernorm(hidden), step)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.lm_head(self.decoder.norm(hidden[step.last_rows]))

    def attention(self, index: int, module: nn.Module, hidden: Tensor, step: Any) -> Tensor:
        """One layer's attention of the new tokens to everything that their sequences hold."""
        projections = module.q_proj, module.k_proj, module.v_proj
        q, k, v = (project(hidden).unflatten(-1, (-1, self.head_dim)) for project in projections)
        return module.o_proj(step.attend(index, q, k, v, rotary=self.rotary).flatten(-2))


def rotary_of(config: Any) -> RotaryEmbedding:
    """The rotary embedding that a Llama's config describes, in the words of transformers 5 or 4."""
    described = getattr(config, "rope_parameters", None)
    if described is None:
        described = {"rope_theta": config.rope_theta, **(config.rope_scaling or {})}
    return RotaryEmbedding(config.head_dim, base=described["rope_theta"], scaling=described)
