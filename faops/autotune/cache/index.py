"""The entries of one directory as a running process knows them.

Only the names of the files are read when the directory has changed. A file is opened when a call asks for it, since its
name follows from the key: a cache of a thousand entries costs a call no more than one of ten.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from faops.autotune.cache.entry import Entry, file_name
from faops.autotune.effort import NEAREST_DISTANCE
from faops.files import Signature, signature
from faops.problem import AttentionProblem

NAME_LISTS = 1024  # problems whose near files are remembered


class Index:
    """The entries in ``directory``: ``names`` lists its files, ``read`` gives the entry in one, or None."""

    def __init__(
        self, directory: Path, names: Callable[[Path], list[str]], read: Callable[[Path], Entry | None]
    ) -> None:
        self.stamp: object = None
        self._directory = directory
        self._list = names
        self._read = read
        self._names: frozenset[str] = frozenset()
        self._files: dict[str, tuple[Signature | None, Entry | None]] = {}  # those that were asked for
        self._near: dict[str, list[str]] = {}  # key -> names of the files of near problems, the nearest first

    def refresh(self) -> None:
        """See which files there are now, and forget those that have changed since they were read."""
        names = frozenset(self._list(self._directory))
        if names != self._names:
            self._names = names
            self._near.clear()
        for name, (seen, _) in self._files.copy().items():  # other threads look entries up meanwhile
            if signature(self._directory / name) != seen:
                self._files.pop(name, None)

    def exact(self, key: str) -> Entry | None:
        """The entry of the problem with this key."""
        return self._entry(file_name(key)) if self._names else None

    def nearest(self, problem: AttentionProblem) -> Iterator[Entry]:
        """Entries equal to ``problem`` in all but batch and lengths, and not too far from it; the nearest first."""
        if not self._names:
            return
        for name in self._near_names(problem):
            if entry := self._entry(name):
                yield entry

    def _entry(self, name: str) -> Entry | None:
        if name not in self._names:
            return None
        found = self._files.get(name)
        if found is None:
            path = self._directory / name
            found = self._files[name] = (signature(path), self._read(path))
        return found[1]

    def _near_names(self, problem: AttentionProblem) -> list[str]:
        key = problem.key()
        found = self._near.get(key)
        if found is None:
            if len(self._near) >= NAME_LISTS:
                self._near.clear()
            names = ((distance, other, file_name(other)) for distance, other in near_keys(problem))
            present = sorted(item for item in names if item[2] in self._names)
            found = self._near[key] = [name for _, _, name in present]
        return found


def near_keys(problem: AttentionProblem) -> Iterator[tuple[float, str]]:
    """Keys of the problems that are equal in all but batch and lengths and not too far away, each with its distance.

    The distance is the sum of |log2| of the ratios of batch, query length and key length. Keys know these sizes by
    their power of two, so there are few of them; a size of 0 is as near as 1.
    """
    bucket, own = problem.bucket(), problem.key()
    # Written into the key rather than asked of 63 problems: that would take a call 2 ms.
    before, after = own.split(_sizes_in_key(bucket.batch, bucket.seqlen_q, bucket.seqlen_k))
    sizes = [list(_near_sizes(size)) for size in (bucket.batch, bucket.seqlen_q, bucket.seqlen_k)]
    for (far_b, batch), (far_q, seqlen_q), (far_k, seqlen_k) in itertools.product(*sizes):
        distance = far_b + far_q + far_k
        if distance <= NEAREST_DISTANCE:
            key = before + _sizes_in_key(batch, seqlen_q, seqlen_k) + after
            if key != own:
                yield distance, key


def _sizes_in_key(batch: int, seqlen_q: int, seqlen_k: int) -> str:
    return f"/b{batch}/q{seqlen_q}/k{seqlen_k}/"


def _near_sizes(size: int) -> Iterator[tuple[float, int]]:
    """Powers of two with their distance in doublings from ``size``, itself one or 0."""
    doublings = int(math.log2(max(size, 1)))
    reach = int(NEAREST_DISTANCE)
    for power in range(max(0, doublings - reach), doublings + reach + 1):
        yield abs(power - doublings), 1 << power
        if power == 0:
            yield doublings, 0
