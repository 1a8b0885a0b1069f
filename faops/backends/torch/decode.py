"""The KV-cache kernel in torch operations: append in place, rotate, then blockwise attention over the cached keys.

Reads lengths and the block table on the host, so it synchronises on an accelerator; it is the fallback, not the fast
path.
"""

from __future__ import annotations

from torch import Tensor

from faops.backends.torch.blockwise import Blockwise
from faops.backends.torch.blockwise_forward import attend
from faops.backends.torch.cached import append, cached_lengths, is_dense_batch, keys_of, sequences_of
from faops.backends.torch.threads import cpu_threads
from faops.backends.torch.tiles import Features, alibi_of
from faops.inputs import DecodeInputs
from faops.layout import empty_lse, empty_out
from faops.registry import Config


class BlockwiseDecode(Blockwise):
    """Decode and chunked prefill over a dense or paged cache, any page size."""

    name = "blockwise_decode"
    op = "decode"

    def launch(self, inputs: DecodeInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        batch, seqlen_q = inputs.q.shape[:2]
        lengths = cached_lengths(inputs)
        sequences = sequences_of(inputs, lengths)
        out = empty_out(inputs.q, inputs.v_cache.shape[3])
        lse = empty_lse(inputs.q) if inputs.need_lse else None
        alibi = alibi_of(inputs.alibi_slopes, batch, inputs.q.dtype)
        features = Features(inputs.band, inputs.scale, inputs.softcap, alibi, inputs.bias, inputs.mask, inputs.sinks)
        with cpu_threads(config.integer("threads")):
            q = append(inputs, lengths)
            if is_dense_batch(inputs, sequences):
                _, first, last = sequences[0]
                keys, values = (cache[:batch, first:last] for cache in (inputs.k_cache, inputs.v_cache))
                attend(q, keys, values, features.columns(first, last), config, out, lse)
                return out, lse
            for index, sequence in enumerate(sequences):
                keys, values = (keys_of(inputs, cache, index, sequence) for cache in (inputs.k_cache, inputs.v_cache))
                part = features.segment(index, seqlen_q, keys.shape[1], sequence.first)
                rows = slice(index, index + 1)
                attend(q[rows], keys, values, part, config, out[rows], None if lse is None else lse[rows])
        return out, lse
