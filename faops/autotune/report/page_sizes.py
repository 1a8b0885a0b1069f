"""Which page size of a KV cache is fastest: the choice of whoever owns the cache, not of a kernel.

Entries of one run are compared whose problems differ in nothing but the page size. They were not timed in turns, like
the finalists of one problem, so a drift of the machine between two problems is in the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.verdict import timing_of
from faops.autotune.search.finals import beats
from faops.problem import AttentionProblem
from faops.quantities import ratio


@dataclass(frozen=True)
class Comparison:
    """The winners of one problem in pages of different sizes, the fastest first; ``problem`` has the page size 0."""

    problem: AttentionProblem
    entries: tuple[Entry, ...]

    @property
    def fastest(self) -> Entry:
        return self.entries[0]

    @property
    def above_noise(self) -> bool:
        """Whether the fastest is faster than every other beyond the noise."""
        return not any(map(self.as_fast, self.entries[1:]))

    def as_fast(self, entry: Entry) -> bool:
        """Whether nothing but noise makes ``entry`` slower than the fastest, by the rule of the finals."""
        return not beats(_timing(self.fastest), _timing(entry))

    def slower(self, entry: Entry) -> float:
        """How many times as long as the fastest ``entry`` takes."""
        return entry.p50 / self.fastest.p50

    def verdict(self, entry: Entry) -> str:
        """What to say of one of the sizes."""
        if entry is self.fastest:
            return "fastest, above the noise" if self.above_noise else "fastest, within the noise"
        return "as fast within the noise" if self.as_fast(entry) else f"takes {ratio(self.slower(entry))} as long"


def compare(entries: Sequence[Entry]) -> list[Comparison]:
    """One comparison for each problem that ``entries`` hold in several page sizes, in their order.

    Lengths are compared as they were measured: caches with room for different numbers of keys are different problems.
    """
    groups: dict[tuple[str, str, AttentionProblem], list[Entry]] = {}
    for entry in entries:
        problem = entry.attention_problem()
        if problem.layout == "paged":
            unpaged = replace(problem, page_size=0)
            groups.setdefault((entry.device, str(entry.environment), unpaged), []).append(entry)
    return [
        Comparison(problem, tuple(sorted(group, key=lambda entry: entry.p50)))
        for (_, _, problem), group in groups.items()
        if len(group) > 1
    ]


def page_size(entry: Entry) -> int:
    """Tokens in a page of the cache that ``entry`` was measured with."""
    return entry.attention_problem().page_size


def _timing(entry: Entry) -> Timing:
    """The timing of an entry's winner; without noise where the entry does not hold it."""
    found = timing_of(entry, entry.kernel, entry.config)
    return found or Timing(entry.kernel, entry.config, entry.p50, entry.p50, entry.p50, 0.0, 1, noisy=True)
