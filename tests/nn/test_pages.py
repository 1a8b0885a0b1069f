"""A paged cache against a plain model of it: a list of tokens for each sequence."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from faops.errors import ArgumentError, OutOfPagesError
from faops.nn import CachedSequence, PagedKVCache

LAYERS = 2
WHICH = st.integers(0, 7)  # of the live sequences


class Requests(RuleBasedStateMachine):
    """Sequences come, grow, fork, shrink and go, as requests of a server do.

    Each new token writes a number of its own into every layer, in the slots that the step names; ``tokens`` is what
    each live sequence must hold. The model counts pages in its own way: from the lengths, and from who holds what.
    """

    @initialize(pages=st.integers(1, 24), page_size=st.integers(1, 5))
    def begin(self, pages: int, page_size: int) -> None:
        self.cache = PagedKVCache(pages, page_size, 1, 1, 2, layers=LAYERS, dtype=torch.float64)
        self.cache.k.fill_(torch.nan)
        self.cache.v.fill_(torch.nan)
        self.tokens: dict[CachedSequence, list[int]] = {}
        self.reserved: dict[CachedSequence, int] = {}  # tokens that an append must have room for
        self.asked: dict[CachedSequence, int] = {}  # the same, also where a fork has taken the promise back
        self.written = 0
        self.allocate(0)

    def live(self) -> bool:
        return bool(self.tokens)

    def crowded(self) -> bool:
        return len(self.tokens) > 2

    def pick(self, which: int) -> CachedSequence:
        return list(self.tokens)[which % len(self.tokens)]

    # --- what may be done -------------------------------------------------------------------------------------------

    @rule(tokens=st.just(0) | st.integers(0, 12))
    def allocate(self, tokens: int) -> None:
        if not self.refused(self.cache.pages_for(tokens), lambda: self.cache.allocate(tokens)):
            self.tokens[self.result] = []
            self.reserved[self.result] = self.asked[self.result] = tokens

    @precondition(live)
    @rule(which=WHICH, tokens=st.just(0) | st.integers(0, 25))
    def fork(self, which: int, tokens: int) -> None:
        parent = self.pick(which)
        length = len(self.tokens[parent])
        needed = max(0, self.cache.pages_for(tokens) - self.cache.pages_for(length))
        needed += tokens > length and length % self.cache.page_size != 0
        if not self.refused(needed, lambda: self.cache.fork(parent, tokens)):
            self.tokens[self.result] = list(self.tokens[parent])
            self.reserved[self.result] = self.asked[self.result] = tokens
            self.reserved[parent] = 0  # no longer promised

    @precondition(live)
    @rule(which=WHICH, counts=st.lists(st.integers(0, 7), min_size=1, max_size=4))
    def append(self, which: int, counts: list[int]) -> None:
        """Neighbours in the list of all sequences, which a fork and its parent often are, from one of them on."""
        first = which % len(self.tokens)
        sequences = list(self.tokens)[first : first + len(counts)]
        counts = counts[: len(sequences)]
        before = [len(self.tokens[sequence]) for sequence in sequences]
        promised = all(old + count <= self.reserved[seq] for seq, old, count in zip(sequences, before, counts))
        needed = self.needed_for(sequences, counts)
        assert not (promised and needed), "what was set aside is not free for others"
        if self.refused(needed, lambda: self.cache.append(sequences, counts)):
            return
        step = self.result
        assert step.positions.tolist() == [at for old, count in zip(before, counts) for at in range(old, old + count)]
        new = torch.arange(self.written, self.written + sum(counts), dtype=torch.float64)
        self.written += sum(counts)
        for layer in range(LAYERS):
            self.cache.k[layer].flatten(0, 1)[step.slots] = (new + layer / 4)[:, None, None]
            self.cache.v[layer].flatten(0, 1)[step.slots] = -(new + layer / 4)[:, None, None].expand(-1, 1, 2)
        for sequence, own in zip(sequences, new.split(counts)):
            self.tokens[sequence] += own.tolist()

    @precondition(live)
    @rule(counts=st.lists(st.integers(0, 3), min_size=8, max_size=8))
    def append_to_all(self, counts: list[int]) -> None:
        self.append(0, counts)

    @precondition(live)
    @rule(which=WHICH, share=st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0)))
    def truncate(self, which: int, share: float) -> None:
        sequence = self.pick(which)
        length, holders = round(share * len(self.tokens[sequence])), self.holders()
        if any(holders[page] > 1 for page in sequence.pages[self.cache.pages_for(length) :]):
            self.reserved[sequence] = 0  # a shared page cannot stay with it
        if length % self.cache.page_size and holders[sequence.pages[length // self.cache.page_size]] > 1:
            self.reserved[sequence] = 0  # and this one it will have to copy
        self.cache.truncate(sequence, length)
        del self.tokens[sequence][length:]
        assert len(sequence.pages) <= self.cache.pages_for(max(length, self.asked[sequence]))

    @precondition(crowded)
    @rule(which=WHICH)
    def free(self, which: int) -> None:
        sequence = self.pick(which)
        self.cache.free(sequence)
        del self.tokens[sequence]
        for misuse in (
            lambda: self.cache.free(sequence),
            lambda: self.cache.truncate(sequence, 0),
            lambda: self.cache.fork(sequence),
            lambda: self.cache.append([sequence], 1),
            lambda: self.cache.block_table([sequence]),
        ):
            with pytest.raises(ArgumentError, match="freed>, expected one that has not been freed"):
                misuse()

    # --- what must hold ---------------------------------------------------------------------------------------------

    def holders(self) -> Counter[int]:
        return Counter(page for sequence in self.tokens for page in sequence.pages)

    def needed_for(self, sequences: list[CachedSequence], counts: list[int]) -> int:
        """Pages that an append takes: those behind the ones a sequence has, and one for each that leaves a page which
        it shares and is about to write. Where all who share it leave, the last one may stay.
        """
        size, holders = self.cache.page_size, self.holders()
        leaving: Counter[int] = Counter()
        needed = 0
        for sequence, count in zip(sequences, counts):
            length = len(self.tokens[sequence])
            needed += max(0, -(-(length + count) // size) - len(sequence.pages))
            if count and length % size:
                leaving[sequence.pages[length // size]] += 1
        return needed + sum(min(many, holders[page] - 1) for page, many in leaving.items())

    def refused(self, needed: int, call: Any) -> bool:
        """Whether the call runs out of pages, which it must do exactly when too few are free, changing nothing."""
        free, before = self.cache.free_pages, self.state()
        if needed <= free:
            self.result = call()
            assert self.cache.free_pages == free - needed
            return False
        with pytest.raises(OutOfPagesError, match=f"{needed} pages? needed, {free} free") as caught:
            call()
        assert (caught.value.needed, caught.value.free) == (needed, free)
        assert self.state() == before
        return True

    def state(self) -> Any:
        # Numbers as text, so that NaN equals itself.
        held = {sequence: (sequence.length, sequence.pages) for sequence in self.cache.sequences}
        return held, self.cache.free_pages, str(self.cache.k.tolist()), str(self.cache.v.tolist())

    @invariant()
    def every_sequence_holds_its_tokens(self) -> None:
        if not hasattr(self, "cache"):
            return
        sequences = list(self.tokens)
        assert list(self.cache.sequences) == sequences
        table, lengths = self.cache.block_table(sequences), self.cache.cache_seqlens(sequences)
        assert (table.dtype, lengths.dtype) == (torch.int32, torch.int32)
        assert lengths.tolist() == [len(tokens) for tokens in self.tokens.values()]
        for row, (sequence, tokens) in enumerate(self.tokens.items()):
            assert sequence.length == len(tokens)
            assert table[row, : len(sequence.pages)].tolist() == list(sequence.pages)
            assert not table[row, len(sequence.pages) :].any()
            for layer in range(LAYERS):
                keys, values = (cache[layer][table[row].long()].flatten(0, 1) for cache in (self.cache.k, self.cache.v))
                assert keys[: len(tokens), 0, 0].tolist() == [token + layer / 4 for token in tokens]
                assert values[: len(tokens), 0, 1].tolist() == [-(token + layer / 4) for token in tokens]

    @invariant()
    def pages_are_conserved(self) -> None:
        if not hasattr(self, "cache"):
            return
        holders = self.holders()
        assert len(holders) == self.cache.used_pages == self.cache.pages - self.cache.free_pages
        assert all(0 <= page < self.cache.pages for page in holders)

    @invariant()
    def no_two_sequences_share_a_page_behind_their_tokens(self) -> None:
        if not hasattr(self, "cache"):
            return
        holders = self.holders()
        for sequence, tokens in self.tokens.items():
            behind = sequence.pages[self.cache.pages_for(len(tokens)) :]
            assert all(holders[page] == 1 for page in behind)


FEW = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=400, stateful_step_count=60)


def test_a_paged_cache_is_a_list_of_tokens_for_each_sequence() -> None:
    run_state_machine_as_test(Requests, settings=FEW)  # type: ignore[no-untyped-call]


@pytest.mark.full
def test_a_paged_cache_is_a_list_of_tokens_for_each_sequence_at_length() -> None:
    run_state_machine_as_test(Requests, settings=MANY)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("walks", [8, pytest.param(200, marks=pytest.mark.full)])
def test_a_busy_server(walks: int) -> None:
    """The same machine on random walks that mostly append and fork, and so share, copy and run out of pages often."""
    for _ in range(walks):
        machine = Requests()
        machine.begin(random.randint(4, 30), random.randint(1, 5))
        for _ in range(100):
            walk(machine)
            machine.every_sequence_holds_its_tokens()
            machine.pages_are_conserved()
            machine.no_two_sequences_share_a_page_behind_their_tokens()


def walk(machine: Requests) -> None:
    which = random.randrange(8)
    action = random.choice("aaaaaaaaffffttnnddd")
    if action == "a":
        machine.append(which, [random.choice((0, 1, 1, 2, 6)) for _ in range(random.randint(1, 8))])
    elif action == "f":
        machine.fork(which, random.choice((0, 0, 9, 20)))
    elif action == "t":
        machine.truncate(which, random.random())
    elif action == "n":
        machine.allocate(random.choice((0, 7)))
    elif machine.crowded():
        machine.free(which)
