"""The tuning cache: one small file a winner, under ``<cache>/tune/v1/<device>/<environment>/entries``.

Reading never raises: a missing, unreadable, truncated, foreign or newer file is a miss, with one warning. Writing is
one rename, so that any number of processes may write at once and none loses anything. No file is ever locked.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from faops import settings
from faops.autotune import environment
from faops.autotune.effort import NEAREST_DISTANCE
from faops.autotune.entry import Entry, ForeignEntryError, NewerEntryError, file_name
from faops.autotune.files import TEMPORARY_SUFFIX, write_whole
from faops.device import DeviceProfile
from faops.errors import CacheError, FaopsError, FaopsWarning
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

LAYOUT = "v1"  # of the directories
SETTLED_SECONDS = 1.0  # a directory written this recently may be written again under the same time stamp
INDEX_LIMIT = 64  # directories kept in memory
MISSING = (FileNotFoundError, NotADirectoryError)  # there is nothing to read, and nothing to warn of


@dataclass(frozen=True)
class Winner:
    """What tuning says to run: the winner of this very problem ("tuned") or of the nearest tuned shape ("nearest")."""

    kernel: Kernel
    config: Config
    source: Literal["tuned", "nearest"]
    detail: str


def lookup(
    problem: AttentionProblem, device: DeviceProfile, accepted: list[Kernel], root: Path | None = None
) -> Winner | None:
    """The winner for ``problem`` among the ``accepted`` kernels, or None. Never raises, never measures.

    ``root`` is the cache root, by default the one the settings name.
    """
    root = root or _root()
    if root is None:
        return None
    index = _index(_entries_directory(root, device.identity))
    exact = index.by_key.get(problem.key())
    if exact is not None and (kernel := serving(exact, accepted)):
        return Winner(kernel, _config(exact, kernel, problem, device), "tuned", _tuned_words(exact))
    for entry in index.nearest(problem):
        if kernel := serving(entry, accepted):
            words = f"nearest tuned shape is {entry.attention_problem()}, {_tuned_words(entry)}"
            return Winner(kernel, _config(entry, kernel, problem, device), "nearest", words)
    return None


def _config(entry: Entry, kernel: Kernel, problem: AttentionProblem, device: DeviceProfile) -> Config:
    """The winning config; where the default won, the default for this very problem, which may depend on its sizes."""
    return kernel.default_config(problem, device) if entry.is_default else entry.config


def stamp() -> object:
    """A value that differs once any process has written or removed a winner. A few stat calls; never raises."""
    root = _root()
    if root is None:
        return None
    try:
        devices = sorted(os.listdir(root / "tune" / LAYOUT))
    except OSError:
        devices = []
    return (root, *(_directory_stamp(_entries_directory(root, device)) for device in devices))


def serving(entry: Entry, kernels: Iterable[Kernel]) -> Kernel | None:
    """The kernel among ``kernels`` that ``entry`` is about, if it is still the code that was measured."""
    for kernel in kernels:
        if kernel.id == entry.kernel:
            return kernel if _source_hash(kernel) == entry.source_hash else None
    return None


def _tuned_words(entry: Entry) -> str:
    if entry.is_default:
        return f"tuned here on {entry.date}, nothing beat the default"
    return f"tuned here on {entry.date}, {entry.speedup:.2f}x over the default"


@functools.lru_cache(maxsize=256)
def _source_hash(kernel: Kernel) -> str:
    """Memoised: the code of a running process does not change, and hashing it reads a file."""
    return kernel.source_hash()


# ---------------------------------------------------------------------------------------------- directories


def _root() -> Path | None:
    """The cache root; None where the settings name none that makes sense (the dispatcher reports that)."""
    try:
        return settings.cache_root()
    except (FaopsError, OSError, RuntimeError):
        return None


def _entries_directory(root: Path, identity: str) -> Path:
    return _directory_of(root, identity, environment.directory_name()) / "entries"


@functools.lru_cache(maxsize=INDEX_LIMIT)
def _directory_of(root: Path, identity: str, environment_name: str) -> Path:
    return root / "tune" / LAYOUT / identity / environment_name


def _directory_stamp(directory: Path) -> object:
    """Modification time of a directory; unequal to anything while it may still change within its resolution."""
    try:
        modified = os.stat(directory).st_mtime_ns
    except OSError:
        return None
    now = time.time_ns()
    return (modified, now) if abs(now - modified) < SETTLED_SECONDS * 1e9 else modified


# ---------------------------------------------------------------------------------------------- index in memory


@dataclass
class _Index:
    """The entries of one directory, by key and by everything but the sizes."""

    stamp: object = None
    files: dict[str, tuple[object, Entry | None]] = field(default_factory=dict)  # name -> (signature, entry)
    by_key: dict[str, Entry] = field(default_factory=dict)
    families: dict[str, list[tuple[AttentionProblem, Entry]]] = field(default_factory=dict)

    def refresh(self, directory: Path) -> None:
        """Read the files that are new or changed."""
        files: dict[str, tuple[object, Entry | None]] = {}
        for item in _scan(directory):
            try:
                status = item.stat()
            except OSError:
                continue
            signature = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self.files.get(item.name)
            if known is not None and known[0] == signature:
                files[item.name] = known
            else:
                files[item.name] = (signature, _read(Path(item.path)))
        self.files = files
        entries = [entry for _, entry in files.values() if entry is not None]
        self.by_key = {entry.key: entry for entry in entries}
        self.families = {}
        for entry in entries:
            bucket = entry.attention_problem().bucket()
            self.families.setdefault(_family(bucket), []).append((bucket, entry))

    def nearest(self, problem: AttentionProblem) -> list[Entry]:
        """Entries equal to ``problem`` in all but batch and lengths, and not too far from it; the nearest first."""
        if not self.families:
            return []
        bucket = problem.bucket()
        near = [
            (distance, entry.key, entry)
            for other, entry in self.families.get(_family(bucket), [])
            if (distance := _distance(bucket, other)) <= NEAREST_DISTANCE
        ]
        return [entry for _, _, entry in sorted(near, key=lambda item: item[:2])]


_indices: dict[Path, _Index] = {}


def _index(directory: Path) -> _Index:
    """The index of ``directory``, brought up to date when the directory has changed."""
    current = _directory_stamp(directory)
    index = _indices.get(directory)
    if index is None:
        if len(_indices) >= INDEX_LIMIT:
            _indices.clear()
        index = _Index()
    if index.stamp != current:
        index.refresh(directory)
        index.stamp = current
    _indices[directory] = index
    return index


def _family(bucket: AttentionProblem) -> str:
    return replace(bucket, batch=1, seqlen_q=1, seqlen_k=1).key()


def _distance(one: AttentionProblem, other: AttentionProblem) -> float:
    """Sum of |log2| of the ratios of batch, query length and key length."""
    pairs = ((one.batch, other.batch), (one.seqlen_q, other.seqlen_q), (one.seqlen_k, other.seqlen_k))
    return sum(abs(math.log2(max(a, 1) / max(b, 1))) for a, b in pairs)


# ---------------------------------------------------------------------------------------------- files


_warned: set[Path] = set()


def _warn_once(path: Path, reason: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(f"tuning cache: {path} is not used: {reason}", FaopsWarning, stacklevel=4)


def _scan(directory: Path) -> Iterator[os.DirEntry[str]]:
    """The entry files of a directory; none where it is missing, and a warning where it cannot be read."""
    try:
        with os.scandir(directory) as items:
            yield from [item for item in items if item.name.endswith(".json")]
    except MISSING:
        return
    except OSError as error:
        _warn_once(directory, str(error.strerror or error))


def _read(path: Path) -> Entry | None:
    """The entry in a file; None, with a warning once a file, where there is none to be had."""
    try:
        entry = _parse(path)
    except MISSING:
        return None
    except OSError as error:
        _warn_once(path, str(error.strerror or error))
    except ForeignEntryError as error:
        _warn_once(path, str(error))
    except (ValueError, RecursionError):
        _warn_once(path, "it is not whole; tuning this problem again replaces it")
    else:
        return entry
    return None


def _parse(path: Path) -> Entry:
    """Read an entry and see that it is the one this file should hold. Raises OSError and ValueError."""
    entry = Entry.from_json(path.read_text(encoding="utf-8"))
    if path.name != file_name(entry.key):
        raise ForeignEntryError(f"it holds the entry of another problem, {entry.key}")
    _, software, device = (parent.name for parent in path.parents[:3])
    if entry.device != device:
        raise ForeignEntryError(f"it was measured on another device, {entry.device}")
    if environment.name_of(entry.environment) != software:
        raise ForeignEntryError("it was measured with other software than its directory says")
    return entry.at(path)


def _refuse_to_replace(path: Path) -> None:
    """Raise CacheError if ``path`` holds something that a new entry must not overwrite."""
    try:
        _parse(path)
    except NewerEntryError as error:
        raise CacheError(f"{path} is left alone: {error}") from None
    except ForeignEntryError as error:
        raise CacheError(f"{path} is left alone: {error}; `faops cache clear` removes it") from None
    except (OSError, ValueError, RecursionError):
        return


class TuningCache:
    """The cache under ``root`` (default: the one the settings name), for those who write, list and clear it."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = settings.cache_root() if root is None else root

    @property
    def base(self) -> Path:
        """Directory that holds one directory a device."""
        return self.root / "tune" / LAYOUT

    def directory(self, device: DeviceProfile) -> Path:
        """Directory of ``device`` in the present environment; it may not exist yet."""
        return _entries_directory(self.root, device.identity).parent

    def path(self, device: DeviceProfile, problem: AttentionProblem) -> Path:
        """The file that holds, or would hold, the entry of ``problem``."""
        return self.directory(device) / "entries" / file_name(problem.key())

    def load(self, device: DeviceProfile, problem: AttentionProblem) -> Entry | None:
        """The entry of ``problem``, or None. Never raises; a file that cannot be used gives a warning once."""
        return _read(self.path(device, problem))

    def store(self, device: DeviceProfile, entry: Entry) -> Entry:
        """Write ``entry``, replacing an older one; the same entry with its path.

        Raises CacheError when the directory cannot be written, and when the file in the way is from a newer faops
        or from something else.
        """
        directory = self.directory(device)
        path = directory / "entries" / file_name(entry.key)
        _refuse_to_replace(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_manifest(directory, device)
            write_whole(path, entry.to_json())
        except OSError as error:
            raise CacheError(
                f"the tuning cache {directory} cannot be written: {error.strerror or error}; "
                "FAOPS_CACHE_DIR names another directory"
            ) from None
        _warned.discard(path)
        return entry.at(path)

    def entries(self, device: DeviceProfile | str | None = None) -> list[Entry]:
        """All entries (of ``device``, a profile or an identity), in every environment, sorted by path."""
        found = [_read(path) for path in self._files(device)]
        return [entry for entry in found if entry is not None]

    def clear(self, device: DeviceProfile | str | None = None, key: str | None = None) -> int:
        """Remove entries (of ``device``; of the problem with that ``key``), readable or not, in every environment.

        Returns how many were removed. Raises CacheError where one cannot be.
        """
        removed = 0
        name = None if key is None else file_name(key)
        for path in self._files(device):
            if name is None or path.name == name:
                removed += remove(path)
        if key is None:
            for leftover in self._files(device, TEMPORARY_SUFFIX):
                remove(leftover)
        return removed

    def _files(self, device: DeviceProfile | str | None, suffix: str = ".json") -> list[Path]:
        identity = device.identity if isinstance(device, DeviceProfile) else device
        try:
            found = list(self.base.glob("*/*/entries/*" + suffix))
        except OSError as error:
            _warn_once(self.base, str(error.strerror or error))
            return []
        return sorted(path for path in found if identity in (None, path.parents[2].name))

    def _write_manifest(self, directory: Path, device: DeviceProfile) -> None:
        """Say in clear what the directory's two names stand for; written once."""
        manifest = directory / "manifest.json"
        if not manifest.exists():
            content = {"device": device.as_dict(), "environment": environment.versions()}
            write_whole(manifest, json.dumps(content, indent=1) + "\n")


def remove(path: Path) -> bool:
    """Remove a file of the cache; whether it was there. Raises CacheError where it cannot be."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CacheError(f"{path} cannot be removed: {error.strerror or error}") from None
    return True
