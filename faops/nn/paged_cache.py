"""PagedKVCache: keys and values of many sequences in pages of one size, taken as they grow and shared by forks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from faops import validate
from faops.nn.counts import as_counts, check_size
from faops.nn.pages import CachedSequence, PageCopy, PagePool
from faops.nn.step import Step


class PagedKVCache:
    """The KV cache of a model that serves sequences of any length, which come and go.

    Args:
        pages: pages in all, shared by all sequences. A page holds ``page_size`` tokens of one sequence in all layers.
        page_size: tokens a page, from 1.
        heads_kv, head_dim, head_dim_v: of keys and values; head_dim_v is head_dim if None.
        layers: layers of the model.
        dtype, device: of keys and values, and so of q, k and v.

    ``k`` is (layers, pages, page size, Hk, D) and ``v`` likewise with Dv: one layer of them is what
    :func:`faops.attention_with_kvcache` takes.

    Which page belongs to whom is kept on the host. A forward pass is one :meth:`append`, whose :class:`Step` every
    layer then attends through. What raises changes nothing; no shared page is ever written.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        heads_kv: int,
        head_dim: int,
        head_dim_v: int | None = None,
        *,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        head_dim_v = head_dim if head_dim_v is None else head_dim_v
        sizes = {"pages": pages, "page_size": page_size, "heads_kv": heads_kv, "head_dim": head_dim,
                 "head_dim_v": head_dim_v, "layers": layers}  # fmt: skip
        for name, size in sizes.items():
            check_size(name, size)
        self.k = torch.zeros(layers, pages, page_size, heads_kv, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(layers, pages, page_size, heads_kv, head_dim_v, dtype=dtype, device=device)
        self._pool = PagePool(pages, page_size)

    # --- sequences ---------------------------------------------------------------------------------------------------

    def allocate(self, tokens: int = 0) -> CachedSequence:
        """A new, empty sequence. Pages for ``tokens`` are set aside for it: so many it can append without fail.

        Raises OutOfPagesError.
        """
        validate.check_length("tokens", tokens)
        return self._pool.allocate(tokens)

    def fork(self, sequence: CachedSequence, tokens: int = 0) -> CachedSequence:
        """A new sequence with the tokens of ``sequence``, whose pages both then share.

        The next append to either takes a copy of the last page, if that is partly filled; so what was set aside for
        ``sequence`` may fall one page short. With ``tokens`` above its length, the copy is made now and pages for
        ``tokens`` in all are set aside. Raises OutOfPagesError, and ArgumentError for a sequence that is not live.
        """
        validate.check_length("tokens", tokens)
        child, copies = self._pool.fork(sequence, tokens)
        self._copy(copies)
        return child

    def append(self, sequences: Sequence[CachedSequence], counts: int | Sequence[int]) -> Step:
        """Make room for new tokens, ``counts`` for each sequence or one number for all, and lengthen the sequences.

        The keys and values of the new tokens are undefined until a layer has written them, :meth:`Step.attend`.

        Raises:
            OutOfPagesError: more pages are needed than are free; no sequence has changed.
            ArgumentError: a sequence is freed, of another cache, or named twice; or the counts do not fit.
        """
        sequences = list(sequences)
        new = as_counts("counts", counts, len(sequences))
        copies = self._pool.append(sequences, new.tolist())
        self._copy(copies)
        lengths = np.array([sequence.length for sequence in sequences], dtype=np.int64)
        return Step(self.k, self.v, self._pool.table(sequences), lengths - new, new, True, Watch(self._pool, sequences))

    def truncate(self, sequence: CachedSequence, length: int) -> None:
        """Forget the tokens from ``length`` on, such as guesses that were wrong. Pages that they alone filled are free
        again, but for those set aside by ``allocate``. Raises ArgumentError.
        """
        validate.check_length("length", length)
        self._pool.truncate(sequence, length)

    def free(self, sequence: CachedSequence) -> None:
        """Give back a sequence and the pages that no fork of it holds. Raises ArgumentError if that has been done."""
        self._pool.free(sequence)

    @property
    def sequences(self) -> tuple[CachedSequence, ...]:
        """The live sequences, oldest first."""
        return tuple(self._pool.sequences.values())

    # --- what a kernel reads -----------------------------------------------------------------------------------------

    def block_table(self, sequences: Sequence[CachedSequence]) -> Tensor:
        """The pages of each sequence in order, int32 (sequences, width), filled up with 0."""
        return self._reading(sequences).block_table

    def cache_seqlens(self, sequences: Sequence[CachedSequence]) -> Tensor:
        """The length of each sequence, int32 (sequences,)."""
        return self._reading(sequences).cache_seqlens

    def _reading(self, sequences: Sequence[CachedSequence]) -> Step:
        for sequence in sequences:
            self._pool.check(sequence)
        lengths = np.array([sequence.length for sequence in sequences], dtype=np.int64)
        table = self._pool.table(sequences)
        return Step(self.k, self.v, table, lengths, np.zeros_like(lengths), True, str)

    # --- room --------------------------------------------------------------------------------------------------------

    @property
    def pages(self) -> int:
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        return self.k.shape[2]

    @property
    def free_pages(self) -> int:
        return len(self._pool.unused)

    @property
    def used_pages(self) -> int:
        return self.pages - self.free_pages

    @property
    def nbytes(self) -> int:
        """Memory of all pages, in bytes."""
        return self.k.nbytes + self.v.nbytes

    def pages_for(self, tokens: int) -> int:
        """Pages that so many tokens of one sequence take."""
        return self._pool.pages_for(tokens)

    def __repr__(self) -> str:
        kind = f"{str(self.k.dtype).removeprefix('torch.')} on {self.k.device}"
        return (
            f"<PagedKVCache {self.used_pages} of {self.pages} pages of {self.page_size} tokens used by "
            f"{len(self.sequences)} sequences, {self.k.shape[0]} layers, {kind}>"
        )

    # --- in the house ------------------------------------------------------------------------------------------------

    def _copy(self, copies: list[PageCopy]) -> None:
        if not copies:
            return
        old, new = (torch.tensor(pages, device=self.k.device) for pages in zip(*copies))
        with torch.no_grad():
            for tensor in (self.k, self.v):
                tensor.index_copy_(1, new, tensor.index_select(1, old))


class Watch:
    """Whether any of some sequences has changed since now."""

    def __init__(self, pool: PagePool, sequences: list[CachedSequence]) -> None:
        self._pool, self._sequences = pool, sequences
        self._seen = self._edits()
        self._all_seen = pool.edits

    def _edits(self) -> list[int]:
        return [sequence._edits for sequence in self._sequences]

    def __call__(self) -> str:
        """What has happened since, "" if nothing has."""
        if self._pool.edits == self._all_seen:
            return ""
        edits = self._edits()
        changed = [f"{seq!r}" for seq, now, seen in zip(self._sequences, edits, self._seen) if now != seen]
        self._all_seen = self._pool.edits if not changed else self._all_seen
        return f"{changed[0]} changed" if changed else ""
