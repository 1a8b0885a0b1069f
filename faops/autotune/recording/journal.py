"""What a search has measured so far, on disk as it happens, so that an interrupted one goes on where it was.

A journal is a file of JSON lines, ``journal/<hash of the key>.jsonl`` beside the entries: a header, then a line a
timing or check, written with one system call before anybody hears of it. A killed process loses at most the timing
that it was taking; half a line at the end is ignored. What is not synchronised to the disk may be lost with the power.

A recorded sweep (:mod:`faops.autotune.recording.sweep`) has the same form.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from faops._version import __version__
from faops.autotune.cache import environment
from faops.autotune.cache.entry import file_name, problem_dict
from faops.autotune.effort import Budget
from faops.autotune.measurement.conditions import Conditions
from faops.autotune.search.candidates import Bench, Candidate, Space
from faops.autotune.search.trial import Drop, RememberedError, drop_kind
from faops.device import DeviceProfile
from faops.files import write_whole
from faops.problem import AttentionProblem
from faops.registry import Config

FORMAT = 1  # of the lines
DIGITS = 6  # significant ones, of a sample

Named = dict[str, Any]  # a candidate in a file: "kernel" and "config"


@dataclass(frozen=True)
class Header:
    """What the lines of a journal are about.

    ``device`` is the device's identity and ``profile`` the whole profile, ``sources`` the hash of each kernel's code by
    id, ``defaults`` and ``known`` the candidates that every strategy times. ``provenance`` is "measured" or "modelled",
    and ``note`` says more about it.
    """

    key: str
    problem: dict[str, Any]
    device: str
    profile: dict[str, Any]
    environment: dict[str, str]
    sources: dict[str, str]
    defaults: tuple[Named, ...]
    known: tuple[Named, ...]
    strategy: str
    provenance: str
    note: str
    faops_version: str
    date: str  # YYYY-MM-DD
    journal: int = FORMAT

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_line(line: bytes | str) -> Header:
        """Raises ValueError for anything that is no header of this format."""
        try:
            data = json.loads(line)
            values = {item.name: data[item.name] for item in fields(Header)}
            header = Header(**{**values, "defaults": tuple(data["defaults"]), "known": tuple(data["known"])})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it has no header ({type(error).__name__}: {error})") from None
        if header.journal != FORMAT:
            raise ValueError(f"its format is {header.journal!r}, this version reads {FORMAT}")
        return header

    def same_circumstances(self, other: Header) -> bool:
        """Whether timings of one count for the other: same problem, device and software."""
        mine, others = ((one.key, one.device, one.environment, one.provenance) for one in (self, other))
        return mine == others


@dataclass(frozen=True)
class Record:
    """One timing, or one check where ``budget`` is None. ``kind`` and ``reason`` say how it failed, "" if it did not.

    Samples in seconds a call.
    """

    kernel: str
    config: Config
    budget: Budget | None
    samples: tuple[float, ...] = ()
    kind: str = ""
    reason: str = ""

    def to_line(self) -> str:
        budget = None if self.budget is None else astuple(self.budget)
        data = {"kernel": self.kernel, "config": dict(self.config), "budget": budget, "samples": self.samples}
        return json.dumps({**data, **({"kind": self.kind, "reason": self.reason} if self.kind else {})}) + "\n"

    @staticmethod
    def from_line(line: bytes | str) -> Record:
        """Raises ValueError for half a line, or something else."""
        try:
            data = json.loads(line)
            budget = None if data["budget"] is None else Budget(*data["budget"])
            samples = tuple(float(value) for value in data["samples"])
            kind, reason = str(data.get("kind", "")), str(data.get("reason", ""))
            record = Record(str(data["kernel"]), Config(data["config"]), budget, samples, kind, reason)
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if budget is not None and not kind and not all(0 < value < float("inf") for value in samples or [0.0]):
            raise ValueError("a timing without samples, or with impossible ones")
        return record


def read(path: Path) -> tuple[Header, list[Record]]:
    """The header and the records of a journal or sweep; lines that are no records are left out.

    Raises OSError, and ValueError for a file that is something else.
    """
    if not path.is_file():  # a pipe would block
        raise FileNotFoundError(path)
    first, *lines = path.read_bytes().split(b"\n")
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(Record.from_line(line))
    return Header.from_line(first), records


def path_of(directory: Path, key: str) -> Path:
    """The journal of the problem with that ``key``, below the directory of a device and an environment."""
    return directory / "journal" / Path(file_name(key)).with_suffix(".jsonl")


class Journal:
    """A journal that is being written. Where it cannot be, nothing is, and the search goes on without."""

    def __init__(self, path: Path, header: Header, records: Iterable[Record] = ()) -> None:
        """Begin a new one that holds ``records`` already, in place of any other."""
        self.path = path
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, header.to_line() + "".join(record.to_line() for record in records))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0))

    def append(self, record: Record) -> None:
        """Write one line, with one system call. After a failure, such as a full disk, nothing more is written."""
        if self._descriptor is None:
            return
        line = record.to_line().encode()
        try:
            whole = os.write(self._descriptor, line) == len(line)
        except OSError:
            whole = False
        if not whole:
            self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove the file: what it holds is in an entry."""
        self.close()
        discard(self.path)


def discard(path: Path) -> None:
    """Remove a journal that is of no more use, if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()


def resumable(path: Path, header: Header) -> list[Record]:
    """What an interrupted search wrote at ``path`` that counts now: of the same problem, device, software and code."""
    try:
        found, records = read(path)
    except (OSError, ValueError):
        return []
    if not found.same_circumstances(header):
        return []
    same = {kernel for kernel, source in header.sources.items() if found.sources.get(kernel) == source}
    return [record for record in records if record.kernel in same]


@runtime_checkable
class Observant(Protocol):
    """A bench that knows under what conditions its samples were taken."""

    conditions: Conditions


class JournaledBench:
    """A bench that writes down what it finds, and answers first with what ``records`` tell.

    ``reused`` counts the timings answered so. Each record answers once, in its order: a second timing of the same
    candidate gets the second record.
    """

    def __init__(self, bench: Bench, journal: Journal, records: Sequence[Record] = ()) -> None:
        self.bench = bench
        self.journal = journal
        self.reused = 0
        self._remembered: dict[tuple[str, Config, Budget | None], deque[Record]] = {}
        for record in records:
            self._remembered.setdefault((record.kernel, record.config, record.budget), deque()).append(record)

    def sample(self, candidate: Candidate, budget: Budget) -> Sequence[float]:
        """Samples in seconds a call, rounded as they are written down."""
        record = self._recall(candidate, budget)
        if record is not None:
            self.reused += 1
            return record.samples
        with self._writing_failures(candidate, budget):
            samples = tuple(float(f"{value:.{DIGITS}g}") for value in self.bench.sample(candidate, budget))
        self.journal.append(Record(candidate.kernel.id, candidate.config, budget, samples))
        return samples

    def check(self, candidate: Candidate) -> None:
        """Raise TuningError when the candidate's results are wrong."""
        if self._recall(candidate, None) is not None:
            return
        with self._writing_failures(candidate, None):
            self.bench.check(candidate)
        self.journal.append(Record(candidate.kernel.id, candidate.config, None))

    @property
    def clocks(self) -> dict[str, Any]:
        """What the bench knows of the device's clocks during the timings that it took itself."""
        return self.bench.conditions.as_dict() if isinstance(self.bench, Observant) else {}

    def _recall(self, candidate: Candidate, budget: Budget | None) -> Record | None:
        """What is remembered of this very question. Raises RememberedError where it failed."""
        waiting = self._remembered.get((candidate.kernel.id, candidate.config, budget))
        if not waiting:
            return None
        record = waiting.popleft()
        if record.kind:
            self.reused += budget is not None
            raise RememberedError(drop_kind(record.kind), record.reason)
        return record

    @contextlib.contextmanager
    def _writing_failures(self, candidate: Candidate, budget: Budget | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            drop = Drop.of(candidate, error, "failed" if budget else "wrong")
            self.journal.append(Record(candidate.kernel.id, candidate.config, budget, (), drop.kind, drop.reason))
            raise


def header_of(
    problem: AttentionProblem,
    profile: DeviceProfile,
    found: Space,
    strategy: str,
    modelled: bool = False,
    note: str = "",
) -> Header:
    """The first line of a journal or a sweep that is begun now."""
    kernels = {candidate.kernel for candidate in found.all}
    return Header(
        key=problem.key(),
        problem=problem_dict(problem),
        device=profile.identity,
        profile=profile.as_dict(),
        environment=environment.versions(),
        sources={kernel.id: kernel.source_hash() for kernel in kernels},
        defaults=_named(found.defaults),
        known=_named(found.known),
        strategy=strategy,
        provenance="modelled" if modelled else "measured",
        note=note,
        faops_version=__version__,
        date=datetime.date.today().isoformat(),
    )


def _named(candidates: Iterable[Candidate]) -> tuple[Named, ...]:
    return tuple({"kernel": candidate.kernel.id, "config": dict(candidate.config)} for candidate in candidates)
