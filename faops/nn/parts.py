"""The attention calls that one step of a model makes over a cache, each for all sequences that it can serve at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import faops
from faops.nn.rotary import RotaryEmbedding

Result = tuple[Tensor, Tensor | None]  # out (tokens, H, Dv) and lse (H, tokens), of packed tokens


@dataclass
class Prompts:
    """Sequences that begin in this step. Their tokens attend to each other and are then written."""

    positions: Tensor  # (tokens,)
    slots: Tensor  # (tokens,), where in the cache they go
    cu_seqlens: Tensor  # int32 (sequences + 1,)
    longest: int

    def attend(
        self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor, rotary: RotaryEmbedding | None,
        num_splits: int, options: dict[str, Any],
    ) -> Result:  # fmt: skip
        """``keys`` and ``values`` are one layer of the cache, (pages, page size, Hk, D or Dv); q, k and v packed."""
        if rotary is not None:
            q, k = (rotary(tensor, self.positions, length=self.longest) for tensor in (q, k))
        lengths, longest = self.cu_seqlens, self.longest
        result = faops.attention_varlen(q, k, v, lengths, lengths, longest, longest, causal=True, **options)
        with torch.no_grad():
            for cache, new in ((keys, k), (values, v)):
                cache.flatten(0, 1).index_copy_(0, self.slots, new)
        return result if options["return_lse"] else (result, None)


@dataclass
class Continued:
    """Sequences that go on by the same number of tokens each, which attend to the cache after they are written."""

    count: int
    before: Tensor  # int32 (sequences,): lengths without the new tokens
    after: Tensor  # int32 (sequences,): lengths with them
    longest: int  # of these
    places: dict[str, Tensor]  # the block table, or the rows of a dense cache

    def attend(
        self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None,
        rotary: RotaryEmbedding | None, num_splits: int, options: dict[str, Any],
    ) -> Result:  # fmt: skip
        """As that of :class:`Prompts`. Without k and v the new tokens have been written before."""
        q = self._batched(q)
        k, v = (None if tensor is None else self._batched(tensor) for tensor in (k, v))
        features: dict[str, Any] = dict(self.places)
        if rotary is not None:
            cos, sin = rotary.tables(self.longest, device=q.device)
            features |= {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": rotary.interleaved}
        result = faops.attention_with_kvcache(
            q, keys, values, k, v, cache_seqlens=self.after if k is None else self.before,
            causal=True, num_splits=num_splits, **features, **options,
        )  # fmt: skip
        if not options["return_lse"]:
            return result.flatten(0, 1), None
        out, lse = result
        return out.flatten(0, 1), lse.transpose(0, 1).flatten(1)

    def _batched(self, tensor: Tensor) -> Tensor:
        return tensor.view(-1, self.count, *tensor.shape[1:])
