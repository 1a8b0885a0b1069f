"""The names of ``xformers.ops`` that are about attention."""

from faops.adapters.xformers.attention import (
    memory_efficient_attention,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
)
from faops.adapters.xformers.ops import fmha
from faops.adapters.xformers.ops.fmha.attn_bias import AttentionBias, LowerTriangularMask

AttentionMask = AttentionBias  # the older name

__all__ = [
    "AttentionBias",
    "AttentionMask",
    "LowerTriangularMask",
    "fmha",
    "memory_efficient_attention",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
]
