"""The tuning cache: one small file a winner, under ``<cache>/tune/v1/<device>/<environment>/entries``.

Reading never raises: a missing, unreadable, truncated, foreign or newer file is a miss, with one warning. Writing is
one rename, so that any number of processes may write at once and none loses anything. No file is ever locked.
"""

from __future__ import annotations

import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from faops import settings
from faops.autotune.cache import environment
from faops.autotune.cache.entry import Entry, ForeignEntryError, NewerEntryError, file_name
from faops.autotune.cache.index import Index
from faops.autotune.cache.validation import complaint, plain, suits
from faops.device import DeviceProfile
from faops.errors import CacheError, FaopsError, FaopsWarning
from faops.files import TEMPORARY_SUFFIX, below, read_whole, remove, write_whole
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

LAYOUT = "v1"  # of the directories
SETTLED_SECONDS = 1.0  # a directory written this recently may be written again under the same time stamp
INDEX_LIMIT = 64  # directories kept in memory
ATTEMPTS = 10  # at writing into a directory that somebody else removes
MANIFEST = "manifest.json"
MISSING = (FileNotFoundError, NotADirectoryError)  # there is nothing to read, and nothing to warn of
UNREADABLE = (OSError, ValueError, RecursionError)  # there is something, and it is no entry


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
    exact = index.exact(problem.key())
    if exact is not None and (found := _usable(exact, accepted, problem, device)):
        return Winner(*found, "tuned", _tuned_words(exact))
    for entry in index.nearest(problem):
        if found := _usable(entry, accepted, problem, device):
            words = f"nearest tuned shape is {entry.attention_problem()}, {_tuned_words(entry)}"
            return Winner(*found, "nearest", words)
    return None


def _usable(
    entry: Entry, accepted: list[Kernel], problem: AttentionProblem, device: DeviceProfile
) -> tuple[Kernel, Config] | None:
    """What ``entry`` says to run for ``problem``, if its kernel can.

    Where the default won, it is the default for this very problem, which may depend on its sizes; but not a default
    that has changed since, which nobody has measured.
    """
    kernel = serving(entry, accepted)
    if kernel is None:
        return None
    default = kernel.default_config(problem, device)
    if entry.is_default and kernel.default_config(entry.attention_problem(), device) == entry.config:
        return kernel, default
    return (kernel, entry.config) if suits(entry.config, kernel, default, problem, device) else None


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


def needs_recheck(entry: Entry, device: DeviceProfile | str) -> str:
    """Why ``entry``, which is served, should be measured again on this machine; "" if it need not.

    The driver is no part of the environment, since a new one seldom changes which config wins. ``device`` is the one
    that the entry is for, a profile or its identity; where either driver is unknown there is nothing to say.
    """
    vendor = device.vendor if isinstance(device, DeviceProfile) else device.partition("_")[0]
    measured, present = entry.driver, environment.driver(vendor)
    if measured and present and measured != present:
        return f"measured with driver {measured}, this is {present}"
    return ""


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


_indices: dict[Path, Index] = {}


def _index(directory: Path) -> Index:
    """The index of ``directory``, brought up to date when the directory has changed."""
    current = _directory_stamp(directory)
    index = _indices.get(directory)
    if index is None:
        if len(_indices) >= INDEX_LIMIT:
            _indices.clear()
        index = Index(directory, _names, _read)
    if index.stamp != current:
        index.refresh()
        index.stamp = current
    _indices[directory] = index
    return index


# ---------------------------------------------------------------------------------------------- files


_warned: set[Path] = set()


def _warn_once(path: Path, reason: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warnings.warn(f"tuning cache: {path} is not used: {reason}", FaopsWarning, stacklevel=4)


def _names(directory: Path) -> list[str]:
    """Names of the entry files of a directory; none where it is missing, and a warning where it cannot be read."""
    try:
        return [name for name in os.listdir(directory) if name.endswith(".json")]
    except MISSING:
        return []
    except OSError as error:
        _warn_once(directory, str(error.strerror or error))
        return []


def _read(path: Path) -> Entry | None:
    """The entry in a file; None, with a warning once a file, where there is none to be had."""
    try:
        return load(path)
    except MISSING:
        return None
    except UNREADABLE as error:
        _warn_once(path, reason_of(error))
    return None


def reason_of(error: Exception) -> str:
    """Why an entry cannot be read, from what :func:`load` or :func:`parse` raised."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, ForeignEntryError):
        return str(error)
    return "it is not whole; tuning this problem again replaces it"


def load(path: Path) -> Entry:
    """The entry in a file of the cache, if it is the one that this file should hold.

    Raises OSError where the file cannot be read, ForeignEntryError or NewerEntryError where it holds something else,
    and any other ValueError or RecursionError where it is not whole.
    """
    entry = parse(read_whole(path))
    if path.name != file_name(entry.key):
        raise ForeignEntryError(f"it holds the entry of another problem, {entry.key}")
    _, software, device = (parent.name for parent in path.parents[:3])
    if entry.device != device:
        raise ForeignEntryError(f"it was measured on another device, {entry.device}")
    if environment.name_of(entry.environment) != software:
        raise ForeignEntryError("it was measured with other software than its directory says")
    return entry.at(path)


def parse(text: str) -> Entry:
    """The entry in its JSON form, with values that make sense. Raises as :func:`load` does."""
    try:
        entry = Entry.from_json(text)
        wrong = complaint(entry)
    except ForeignEntryError as error:
        raise type(error)(plain(str(error))) from None
    if wrong:
        raise ForeignEntryError(f"it is no valid tuning entry ({wrong})")
    return entry


def present(path: Path) -> Entry | None:
    """The entry in a file that is about to be replaced; None where there is none, or half of one.

    Raises CacheError where there is something that must not be overwritten.
    """
    try:
        return load(path)
    except MISSING:
        return None
    except (ForeignEntryError, OSError) as error:
        hint = "" if isinstance(error, NewerEntryError) else "; `faops cache clear` removes it"
        raise CacheError(f"{path} is left alone: {reason_of(error)}{hint}") from None
    except UNREADABLE:
        return None


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
        """Write ``entry``, measured on ``device``, replacing an older one; the same entry with its path.

        Raises CacheError when the directory cannot be written, when the file in the way is from a newer faops or from
        something else, and for an entry that could not be read again.
        """
        return self.put(entry, device.as_dict())

    def place(self, entry: Entry) -> Path:
        """The file that ``entry`` belongs in."""
        directory = _directory_of(self.root, entry.device, environment.name_of(entry.environment))
        return directory / "entries" / file_name(entry.key)

    def put(self, entry: Entry, device: Mapping[str, Any] | None, valid: Callable[[], bool] = lambda: True) -> Entry:
        """Write ``entry`` where it belongs, as :meth:`store` does; ``device`` is its profile as a dict, if known.

        ``valid`` is asked when nothing is left but the rename; if it says no, nothing is written and the entry comes
        back without a path.
        """
        if wrong := complaint(entry):
            raise CacheError(f"the entry of {plain(str(entry.key))} cannot be stored: {wrong}")
        path = self.place(entry)
        present(path)
        try:
            written = _persistently(lambda: self._write(path, entry, device, valid))
        except OSError as error:
            raise CacheError(
                f"the tuning cache {path.parents[1]} cannot be written: {error.strerror or error}; "
                "FAOPS_CACHE_DIR names another directory"
            ) from None
        _warned.discard(path)
        return entry.at(path) if written else entry

    def _write(self, path: Path, entry: Entry, device: Mapping[str, Any] | None, valid: Callable[[], bool]) -> bool:
        """Write an entry, and once a directory in clear what its two names stand for."""
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest = path.parents[1] / MANIFEST
        if device is not None and not manifest.exists():
            content = {"device": dict(device), "environment": entry.environment}
            write_whole(manifest, json.dumps(content, indent=1) + "\n")
        return write_whole(path, entry.to_json(), valid)

    def entries(self, device: DeviceProfile | str | None = None) -> list[Entry]:
        """All entries (of ``device``, a profile or an identity), in every environment, sorted by path."""
        found = [_read(path) for path in self.files(device)]
        return [entry for entry in found if entry is not None]

    def clear(self, device: DeviceProfile | str | None = None, key: str | None = None) -> int:
        """Remove entries (of ``device``; of the problem with that ``key``), readable or not, in every environment.

        Returns how many were removed. Raises CacheError where one cannot be, once all the others are.
        """
        name = None if key is None else file_name(key)
        leftovers = [] if key else self.files(device, TEMPORARY_SUFFIX)
        removed, failures = 0, []
        for path in [*self.files(device), *leftovers]:
            if name in (None, path.name):
                try:
                    removed += remove(path) and path.suffix == ".json"
                except CacheError as error:
                    failures.append(error)
        if failures:
            raise failures[0]
        return removed

    def files(self, device: DeviceProfile | str | None = None, suffix: str = ".json") -> list[Path]:
        """The files of entries, readable or not, sorted."""
        identity = device.identity if isinstance(device, DeviceProfile) else device
        try:
            found = below(self.base, "*/*/entries/*" + suffix)
        except OSError as error:
            _warn_once(self.base, str(error.strerror or error))
            return []
        return [path for path in found if identity in (None, path.parents[2].name)]


def _persistently(write: Callable[[], bool]) -> bool:
    """Write again if the directory vanished on the way, which is what another process that prunes may do.

    FileExistsError too: Path.mkdir raises it for a directory that was in the way and is gone when mkdir looks at it.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return write()
        except (FileNotFoundError, FileExistsError):
            continue
    return write()
