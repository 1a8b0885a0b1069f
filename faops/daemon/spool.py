"""The misses that programs write down, watched: what is new, and what was called often meanwhile.

    <root>/tune/v1/<identity>/<environment>/misses/<hash of the key>.json
                                            hits/<hash of the key>.txt     see faops.hits

Nothing is locked, and nothing in there is trusted: a file is read whole or passed over, which is told once. A look at
directories in which nothing has happened costs one stat each; every LOOK_SECONDS all files are looked at, since a
number that is added to a file changes no directory. This module imports no torch, so it does not judge problems.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faops import hits
from faops.files import Signature, file_name, read_whole, signature

SCHEMA = 1  # of the files of misses
LOOK_SECONDS = 10.0  # how often hits are looked at; new misses show at once
SETTLED_SECONDS = 1.0  # a directory written this recently may be written again under the same time stamp
BATCH = 200  # files read at one poll, so that the daemon answers meanwhile; the others wait for the next
LARGEST = 1 << 16  # bytes of a miss; they have a fortieth of it
MOST_FILES = 2000  # of a directory; programs write half as many
MOST_DIRECTORIES = 500
MOST_TOLD = 500  # files that are told of in the life of a process

Mark = tuple[str, str, str]


@dataclass(frozen=True)
class SpoolMiss:
    """A problem that programs ran untuned, as it stands in its file: nothing says that there is such a problem.

    ``identity`` and ``environment`` are the names of its directories in the cache, ``device`` the profile of the device
    or {} where an older faops wrote it. ``hits`` counts the calls, as far as programs have told; ``date`` (YYYY-MM-DD)
    is that of the first.
    """

    identity: str
    environment: str
    key: str
    problem: dict[str, Any]
    hits: int
    device: dict[str, Any]
    path: Path
    date: str

    @property
    def mark(self) -> Mark:
        """That of the task, see :class:`faops.daemon.jobs.Task`."""
        return self.identity, self.environment, self.key


class Spool:
    """The misses below the root of a tuning cache. ``problems`` says what was passed over; the reader clears it.

    ``clock`` gives seconds that only grow.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.problems: list[str] = []
        self._base = _Listing(root / "tune" / "v1")
        self._identities: dict[str, _Listing] = {}
        self._directories: dict[tuple[str, str], _Directory] = {}
        self._clock = clock
        self._look_at = clock()
        self._told: set[Path] = set()

    def poll(self) -> list[SpoolMiss]:
        """The misses that are new, or whose hits have changed, since they were last given; BATCH at most.

        Raises nothing: what cannot be read is passed over.
        """
        now = self._clock()
        everything = now >= self._look_at
        if everything:
            self._look_at = now + LOOK_SECONDS
        self._find(everything)
        for directory in self._directories.values():
            directory.look(everything, self._tell)
        return self._take()

    def forget(self, mark: Mark) -> None:
        """Give this miss no more, unless its file is written anew."""
        identity, environment, key = mark
        directory = self._directories.get((identity, environment))
        if directory is not None and (state := directory.files.get(file_name(key))) is not None:
            state.wanted = state.due = False

    def _find(self, everything: bool) -> None:
        """See which directories there are."""
        if self._base.look(everything, self._tell):
            self._identities = {name: self._identities.get(name, _Listing(self._base.path / name))
                                for name in self._base.names}  # fmt: skip
        changed = [listing.look(everything, self._tell) for listing in self._identities.values()]
        if not any(changed):
            return
        found = [(identity, name) for identity, listing in self._identities.items() for name in listing.names]
        if len(found) > MOST_DIRECTORIES:
            self._tell(self._base.path, f"it has more than {MOST_DIRECTORIES} environments; the others are not watched")
        self._directories = {
            pair: self._directories.get(pair) or _Directory(self._base.path, *pair)
            for pair in sorted(found)[:MOST_DIRECTORIES]
        }

    def _take(self) -> list[SpoolMiss]:
        """Read what is due."""
        found: list[SpoolMiss] = []
        reads = 0
        for directory in self._directories.values():
            for name, state in directory.files.items():
                if not state.due:
                    continue
                if reads == BATCH:
                    return found
                reads += 1
                if (miss := directory.read(name, state)) is not None:
                    found.append(miss)
        return found

    def _tell(self, path: Path, why: str) -> None:
        if path not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(path)
            self.problems.append(f"{path} is passed over: {why}")


_Tell = Callable[[Path, str], None]


class _Listing:
    """The ``names`` in a directory, read again when its time stamp has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self._stamp: object = self  # unequal to any

    def look(self, everything: bool, tell: _Tell) -> bool:
        """Bring ``names`` up to date; whether they were read."""
        try:
            stamp = _stamp(self.path)
            if stamp == self._stamp and not everything:
                return False
            # Names that cannot be printed are none of faops, and could not be kept as text.
            self.names = sorted(name for name in os.listdir(self.path) if name.isprintable())
        except (FileNotFoundError, NotADirectoryError):
            stamp, self.names = None, []
        except OSError as error:
            stamp, self.names = None, []
            tell(self.path, _reason(error))
        read = everything or stamp != self._stamp
        self._stamp = stamp
        return read


def _stamp(directory: Path) -> object:
    """Modification time of a directory; unequal to any while it may still change within its resolution."""
    modified = os.stat(directory).st_mtime_ns
    return object() if abs(time.time_ns() - modified) < SETTLED_SECONDS * 1e9 else modified


@dataclass
class _File:
    """What is known of the file of a miss. It is ``due`` to be read; ``given`` are the hits with which it last was."""

    path: Path
    hits_path: Path
    signature: Signature | None = None
    hits_signature: Signature | None = None
    due: bool = True
    wanted: bool = True
    given: int = 0
    broken: str = ""


@dataclass
class _Directory:
    """The misses of a device in an environment."""

    base: Path
    identity: str
    environment: str
    files: dict[str, _File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listing = _Listing(self.base / self.identity / self.environment / hits.MISSES)

    def look(self, everything: bool, tell: _Tell) -> None:
        """See which files are due."""
        if not self._listing.look(everything, tell):
            return
        self.files = {name: self.files.get(name) or self._file(name) for name in self._names(tell)}
        for state in self.files.values():
            self._compare(state)
            if everything:
                self._compare_hits(state)
                if state.broken and not state.due:  # it has been so for a while: nobody is just writing it
                    tell(state.path, state.broken)

    def _file(self, name: str) -> _File:
        path = self._listing.path / name
        return _File(path, hits.place(path))

    def _names(self, tell: _Tell) -> Iterator[str]:
        names = [name for name in self._listing.names if name.endswith(".json")]
        if len(names) > MOST_FILES:
            tell(self._listing.path, f"it has {len(names)} files; only {MOST_FILES} of them are watched")
        yield from names[:MOST_FILES]

    def _compare(self, state: _File) -> None:
        seen = signature(state.path)
        if seen != state.signature:
            state.signature, state.due, state.wanted, state.given, state.broken = seen, True, True, 0, ""

    def _compare_hits(self, state: _File) -> None:
        seen = signature(state.hits_path)
        if seen != state.hits_signature:
            state.hits_signature = seen
            state.due = state.due or (state.wanted and not state.broken)

    def read(self, name: str, state: _File) -> SpoolMiss | None:
        """The miss in a file that was due; None where there is none, or nothing new."""
        state.due = False
        try:
            data = _parse(read_whole(state.path, LARGEST), name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            state.broken = _reason(error)
            return None
        count = hits.read(state.path)
        if count == state.given:
            return None
        state.given = count
        return SpoolMiss(self.identity, self.environment, data["key"], data["problem"], count, data["device"],
                         state.path, data["date"])  # fmt: skip


def _parse(text: str, name: str) -> dict[str, Any]:
    """What stands in a file of this name, with all fields of their types. Raises ValueError and RecursionError."""
    data = json.loads(text, parse_constant=_refuse)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError("it is no miss that this version of faops can read")
    key, problem, date, device = (data.get(item) for item in ("key", "problem", "date", "device"))
    if not (isinstance(key, str) and isinstance(problem, dict) and _is_shallow(problem) and isinstance(date, str)):
        raise ValueError("it is no whole miss")
    if name != file_name(key):
        raise ValueError("it holds the miss of another problem")
    return {"key": key, "problem": problem, "date": date, "device": _device(device)}


def _device(data: object) -> dict[str, Any]:
    """A device's profile, {} for what cannot be one."""
    if not (isinstance(data, dict) and _is_shallow(data)):
        return {}
    return data if type(data.get("threads")) is int and isinstance(data.get("torch_type"), str) else {}


def _is_shallow(value: object, levels: int = 2) -> bool:
    """Whether nothing is nested more deeply than in a problem, whose fields may have fields."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no number")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (json.JSONDecodeError, UnicodeError, RecursionError)):
        return "it is not whole"
    return str(error)
