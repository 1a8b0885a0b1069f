"""Which sequence has which pages: the bookkeeping of a paged cache, on the host and without a key or value in it.

A page has a count of the sequences that hold it. Forked sequences hold the same pages. What keeps them apart is one
rule: a sequence writes only behind its length, and every page that reaches behind its length is its own. Appending
therefore first gives a sequence a copy of its last page, where that page is partly filled and shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from faops.errors import ArgumentError, OutOfPagesError

FIRST_ROWS, FIRST_WIDTH = 8, 8  # of the table, which doubles from there

PageCopy = tuple[int, int]  # (from, to)


class CachedSequence:
    """A sequence of a paged cache: a handle, made by ``allocate`` and ``fork`` and good until ``free``."""

    __slots__ = ("_edits", "_length", "_pages", "_pool", "_reserved", "_row", "number")

    def __init__(self, pool: PagePool, number: int, row: int) -> None:
        self.number = number  # counts all sequences of the cache
        self._pool = pool
        self._row = row  # of the pool's table; -1 once freed
        self._length = 0
        self._pages: list[int] = []
        self._reserved = 0  # pages that truncating leaves it
        self._edits = 0  # changes since it was made

    @property
    def length(self) -> int:
        """Tokens appended so far."""
        return self._length

    @property
    def pages(self) -> tuple[int, ...]:
        """The numbers of its pages in order, reserved ones behind its length included."""
        return tuple(self._pages)

    @property
    def freed(self) -> bool:
        return self._row < 0

    def __repr__(self) -> str:
        state = "freed" if self.freed else f"{self._length} tokens in {len(self._pages)} pages"
        return f"<CachedSequence {self.number}: {state}>"


class PagePool:
    """``pages`` pages of ``page_size`` tokens, and the sequences that hold them.

    Every method either does all that it is asked or raises and changes nothing: OutOfPagesError where pages are
    missing, ArgumentError for a sequence that is freed, of another pool, or named twice.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.references = [0] * pages
        self.unused = list(range(pages - 1, -1, -1))  # a stack: page 0 goes first
        self.sequences: dict[int, CachedSequence] = {}  # live ones by number
        self.edits = 0  # of all sequences
        self._made = 0
        self._table = np.zeros((FIRST_ROWS, FIRST_WIDTH), dtype=np.int32)
        self._unused_rows = list(range(FIRST_ROWS - 1, -1, -1))

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def allocate(self, tokens: int) -> CachedSequence:
        """A new empty sequence with pages of its own for ``tokens``."""
        needed = self.pages_for(tokens)
        self._require(needed)
        sequence = self._new_sequence()
        self._extend(sequence, needed)
        sequence._reserved = needed
        return sequence

    def fork(self, parent: CachedSequence, tokens: int) -> tuple[CachedSequence, list[PageCopy]]:
        """A new sequence that holds the pages of ``parent`` up to its length, with room for ``tokens`` in all."""
        self.check(parent)
        shared = parent._pages[: self.pages_for(parent._length)]
        grows = tokens > parent._length
        needed = max(0, self.pages_for(tokens) - len(shared))
        own_last = grows and parent._length % self.page_size > 0
        self._require(needed + own_last)
        child = self._new_sequence()
        for page in shared:
            self._hold(child, page)
        child._length = parent._length
        copies = [self._replace_last(child)] if own_last else []
        self._extend(child, needed)
        child._reserved = self.pages_for(tokens)
        self._edited(parent)  # what it appended but has not written yet would be shared
        return child, copies

    def append(self, sequences: Sequence[CachedSequence], counts: Sequence[int]) -> list[PageCopy]:
        """Lengthen each sequence by its count. Returns the pages to copy, before anything is written."""
        self._check_all(sequences)
        given_up: Counter[int] = Counter()  # references to a shared page that end in this call
        needed = 0
        copying = []
        for sequence, count in zip(sequences, counts):
            missing = self.pages_for(sequence._length + count) - len(sequence._pages)
            needed += max(0, missing)
            if count and sequence._length % self.page_size:
                last = sequence._pages[sequence._length // self.page_size]
                if self.references[last] - given_up[last] > 1:
                    given_up[last] += 1
                    copying.append(sequence)
        self._require(needed + len(copying))
        copies = [self._replace_last(sequence) for sequence in copying]
        for sequence, count in zip(sequences, counts):
            sequence._length += count
            self._extend(sequence, self.pages_for(sequence._length) - len(sequence._pages))
            self._edited(sequence)
        return copies

    def truncate(self, sequence: CachedSequence, length: int) -> None:
        """Forget all tokens from ``length`` on. Pages that were reserved stay, unless they have been shared."""
        self.check(sequence)
        if not 0 <= length <= sequence._length:
            raise ArgumentError("length", length, f"between 0 and {sequence._length}, the length of {sequence}")
        kept = self.pages_for(length)
        behind = sequence._pages[kept:]
        own = [page for page in behind if self.references[page] == 1][: max(0, sequence._reserved - kept)]
        for page in set(behind).difference(own):
            self._release(page)
        self._table[sequence._row, kept : len(sequence._pages)] = 0
        del sequence._pages[kept:]
        for page in own:
            self._put(sequence, page)
        sequence._length = length
        self._edited(sequence)

    def free(self, sequence: CachedSequence) -> None:
        self.check(sequence)
        for page in reversed(sequence._pages):
            self._release(page)
        self._table[sequence._row, : len(sequence._pages)] = 0
        self._unused_rows.append(sequence._row)
        del self.sequences[sequence.number]
        self._edited(sequence)
        sequence._row, sequence._length, sequence._reserved = -1, 0, 0
        sequence._pages.clear()

    def table(self, sequences: Sequence[CachedSequence]) -> npt.NDArray[np.int32]:
        """The pages of each sequence in order, (sequences, width), filled up with 0.

        The width is a power of two, so that a growing sequence meets few widths: kernels are planned for one.
        """
        longest = max((len(sequence._pages) for sequence in sequences), default=0)
        width = 1 << max(longest - 1, 0).bit_length()
        rows = np.array([sequence._row for sequence in sequences], dtype=np.intp)
        return self._table[rows, :width]  # a copy

    def check(self, sequence: CachedSequence) -> None:
        if not isinstance(sequence, CachedSequence) or sequence._pool is not self:
            raise ArgumentError("sequence", repr(sequence), "a sequence that this cache allocated")
        if sequence.freed:
            raise ArgumentError("sequence", repr(sequence), "one that has not been freed")

    def _check_all(self, sequences: Sequence[CachedSequence]) -> None:
        for sequence in sequences:
            self.check(sequence)
        if len({sequence._row for sequence in sequences}) < len(sequences):
            raise ArgumentError("sequences", list(sequences), "each sequence once")

    def _require(self, needed: int) -> None:
        if needed > len(self.unused):
            raise OutOfPagesError(needed, len(self.unused))

    def _new_sequence(self) -> CachedSequence:
        if not self._unused_rows:
            rows = len(self._table)
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._unused_rows = list(range(2 * rows - 1, rows - 1, -1))
        sequence = CachedSequence(self, self._made, self._unused_rows.pop())
        self._made += 1
        self.sequences[sequence.number] = sequence
        return sequence

    def _extend(self, sequence: CachedSequence, count: int) -> None:
        for _ in range(count):
            self._hold(sequence, self.unused.pop())

    def _hold(self, sequence: CachedSequence, page: int) -> None:
        self.references[page] += 1
        self._put(sequence, page)

    def _put(self, sequence: CachedSequence, page: int) -> None:
        """Makes ``page`` the last of the sequence."""
        place = len(sequence._pages)
        if place == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        self._table[sequence._row, place] = page
        sequence._pages.append(page)

    def _replace_last(self, sequence: CachedSequence) -> PageCopy:
        """Gives the sequence a page of its own for its partly filled last one, which others hold too."""
        place = sequence._length // self.page_size
        old, new = sequence._pages[place], self.unused.pop()
        self.references[old] -= 1
        self.references[new] += 1
        sequence._pages[place] = new
        self._table[sequence._row, place] = new
        return old, new

    def _release(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page] == 0:
            self.unused.append(page)

    def _edited(self, sequence: CachedSequence) -> None:
        sequence._edits += 1
        self.edits += 1
