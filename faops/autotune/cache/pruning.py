"""Removing what no call uses any more: what was measured with other software, and winners of code that has changed."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faops import registry
from faops.autotune.cache import MANIFEST, UNREADABLE, TuningCache, environment, load, serving
from faops.autotune.cache.entry import Entry
from faops.errors import CacheError
from faops.files import TEMPORARY_SUFFIX, Signature, below, remove, signature

DAY = 86400.0  # seconds
ABANDONED_DAYS = 1 / 24  # after which nobody is still writing a temporary file
# Of an environment, beside its entries.
UNFINISHED = ("journal/*.jsonl", "run.json")
SIDE_FILES = ("misses/*.json", "hits/*.txt", *UNFINISHED)


@dataclass(frozen=True)
class Stale:
    """A file that no call uses. ``key`` is "" for what is no entry; ``age`` in days."""

    path: Path
    key: str
    reason: str
    age: float
    signature: Signature | None


def stale(cache: TuningCache, older_than: float = 0.0) -> list[Stale]:
    """The files that no call on this machine uses, and that are at least ``older_than`` days old, sorted by path.

    An entry is as old as its date says, everything else as its file. What cannot be read is not among them, since
    nobody can tell what it is: `faops cache clear` removes it.
    """
    found = [*_entries(cache), *_side_files(cache), *_leftovers(cache)]
    return sorted((item for item in found if item.age >= older_than), key=lambda item: item.path)


def prune(cache: TuningCache, files: Sequence[Stale]) -> list[Stale]:
    """Remove ``files`` and the directories that they leave empty; those that were removed.

    A file that was replaced since it was looked at stays. Raises CacheError where one cannot be removed, once all the
    others are.
    """
    removed, failures = [], []
    for item in files:
        try:
            if signature(item.path) == item.signature and remove(item.path):
                removed.append(item)
        except CacheError as error:
            failures.append(error)
    for directory in below(cache.base, "*/*"):
        if directory.name != environment.directory_name():
            _remove_if_empty(directory)
    if failures:
        raise failures[0]
    return removed


def clear_unfinished(cache: TuningCache) -> int:
    """Remove what unfinished runs of the tuner have measured and left to do, of every device and environment.

    Returns the number of problems measured in part. Raises CacheError where a file cannot be removed.
    """
    found = [path for pattern in UNFINISHED for path in below(cache.base, f"*/*/{pattern}")]
    return sum(remove(path) and path.suffix == ".jsonl" for path in found)


def _entries(cache: TuningCache) -> Iterator[Stale]:
    for path in cache.files():
        seen = signature(path)
        with contextlib.suppress(*UNREADABLE):
            entry = load(path)
            age = (datetime.date.today() - datetime.date.fromisoformat(entry.date)).days
            if reason := _why(entry):
                yield Stale(path, entry.key, reason, age, seen)


def _why(entry: Entry) -> str:
    """Why no call uses an entry; "" if one does, or might once a backend can be loaded again."""
    if entry.environment != environment.versions():
        return "other software"
    if serving(entry, registry.kernels()):
        return ""
    if registry.get(entry.kernel) is None:
        return "" if registry.failures() else "kernel gone"
    return "kernel changed"


def _side_files(cache: TuningCache) -> Iterator[Stale]:
    """What else lies in the directories of other software."""
    for pattern in SIDE_FILES:
        for path in below(cache.base, f"*/*/{pattern}"):
            if path.relative_to(cache.base).parts[1] != environment.directory_name():
                yield Stale(path, "", "other software", _age(path), signature(path))


def _leftovers(cache: TuningCache) -> Iterator[Stale]:
    """What writers left that were killed."""
    for path in below(cache.base, f"**/*{TEMPORARY_SUFFIX}"):
        if _age(path) >= ABANDONED_DAYS:
            yield Stale(path, "", "left by a killed process", _age(path), signature(path))


def _age(path: Path) -> float:
    seen = signature(path)
    return 0.0 if seen is None else time.time() / DAY - seen[0] / 1e9 / DAY


def _remove_if_empty(directory: Path) -> None:
    """Remove the directory of an environment in which nothing but its manifest is left."""
    with contextlib.suppress(OSError):  # somebody has begun to use it again, or removes it as well
        files = [path for path in below(directory, "**/*") if not path.is_dir()]
        if all(path == directory / MANIFEST for path in files):
            for path in files:
                path.unlink()
            for folder in reversed(below(directory, "**/*")):
                folder.rmdir()
            directory.rmdir()
