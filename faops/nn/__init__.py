"""Modules and caches: attention as a layer of a model, and what it remembers between tokens."""

from faops.errors import OutOfPagesError
from faops.nn.attention import MultiheadAttention, alibi_slopes
from faops.nn.cache import KVCache
from faops.nn.paged_cache import PagedKVCache
from faops.nn.pages import CachedSequence
from faops.nn.rotary import RotaryEmbedding
from faops.nn.step import Step

__all__ = [
    "CachedSequence",
    "KVCache",
    "MultiheadAttention",
    "OutOfPagesError",
    "PagedKVCache",
    "RotaryEmbedding",
    "Step",
    "alibi_slopes",
]
