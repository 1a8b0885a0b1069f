"""One tuned winner with everything that was measured for it, and its JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from faops.autotune.cache.environment import SCHEMA
from faops.files import file_name as file_name
from faops.problem import AttentionProblem
from faops.registry import Config


class ForeignEntryError(ValueError):
    """The text is whole, but no entry that this version of faops can read."""


class NewerEntryError(ForeignEntryError):
    """The entry was written by a newer version of faops."""


@dataclass(frozen=True)
class Timing:
    """How long one config of one kernel takes. Times in seconds a call; ``mad`` is the median absolute deviation.

    ``predicted`` is what the cost model said before, None where it said nothing.
    """

    kernel: str
    config: Config
    p20: float
    p50: float
    p80: float
    mad: float
    n: int
    noisy: bool
    predicted: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "config": dict(self.config)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Timing:
        """Read a timing. Raises KeyError, TypeError and ValueError."""
        known = _values(Timing, data)
        known["config"] = _config(known["config"])
        timing = Timing(**known)
        _require(timing, str, "kernel")
        _require(timing, int, "n")
        _require(timing, bool, "noisy")
        _require_times(timing, "p20", "p50", "p80")
        _require_times(timing, "mad", smallest=0.0)
        if timing.predicted is not None:
            _require_times(timing, "predicted")
        return timing


@dataclass(frozen=True)
class Entry:
    """The winner of one tuned problem on one device in one environment.

    ``key`` is the problem's cache key in clear; ``device`` the device's identity; ``measurements`` the number of
    timings taken; ``speedup`` default_p50 / p50 (1.0 when the default won). ``dropped`` holds the configs that failed:
    "config" and "reason", and, unless an older faops wrote it, "kind" (a ``DropKind`` of the search) and "source", the
    hash of its kernel's code.

    What follows ``date`` may be absent from a file and has a default. ``strategy`` is the name of the search;
    ``pruned`` counts the configs that the cost model left out; ``decision`` is what was compared in the end, see
    :func:`~faops.autotune.search.finals.decision`; ``driver`` is the device driver's version and ``clocks`` what is
    known of the device's clocks while it was measured.
    """

    key: str
    problem: dict[str, Any]
    device: str
    environment: dict[str, str]
    kernel: str
    source_hash: str
    config: Config
    p50: float
    default_kernel: str
    default_config: Config
    default_p50: float
    speedup: float
    timings: tuple[Timing, ...]
    dropped: tuple[dict[str, str], ...]
    measurements: int
    faops_version: str
    date: str  # YYYY-MM-DD
    strategy: str = ""
    pruned: int = 0
    decision: dict[str, Any] = field(default_factory=dict)
    driver: str = ""
    clocks: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
    path: Path | None = field(default=None, compare=False)  # where it was read from or written to

    @property
    def is_default(self) -> bool:
        """Whether tuning found nothing better than the default."""
        return self.kernel == self.default_kernel and self.config == self.default_config

    def attention_problem(self) -> AttentionProblem:
        return AttentionProblem.from_dict(self.problem)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, without the path."""
        data = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "path"}
        data["config"] = dict(self.config)
        data["default_config"] = dict(self.default_config)
        data["timings"] = [timing.as_dict() for timing in self.timings]
        data["dropped"] = [dict(item) for item in self.dropped]
        return data

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Entry:
        """Read an entry. Raises json.JSONDecodeError for text that is not JSON (such as half a file),
        NewerEntryError for a newer schema and ForeignEntryError for anything else that is not an entry.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise ForeignEntryError("it is no tuning entry of faops")
        if data["schema"] > SCHEMA:
            raise NewerEntryError(f"it was written by a newer faops (schema {data['schema']}, this one reads {SCHEMA})")
        try:
            return Entry._from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ForeignEntryError(f"it is no valid tuning entry ({type(error).__name__}: {error})") from None

    @staticmethod
    def _from_dict(data: dict[str, Any]) -> Entry:
        values = _values(Entry, data)
        values["config"] = _config(values["config"])
        values["default_config"] = _config(values["default_config"])
        values["timings"] = tuple(Timing.from_dict(timing) for timing in values["timings"])
        values["dropped"] = tuple(dict(item) for item in values["dropped"])
        entry = Entry(**values)
        _require(entry, str, "key", "device", "kernel", "source_hash", "default_kernel", "faops_version", "date")
        _require(entry, str, "strategy", "driver")
        _require(entry, dict, "problem", "environment", "decision", "clocks")
        _require(entry, int, "measurements", "pruned")
        _require_times(entry, "p50", "default_p50", "speedup")
        if not all(isinstance(text, str) for item in entry.dropped for text in item.values()):
            raise TypeError("dropped holds something else than text")
        if entry.attention_problem().key() != entry.key:
            raise ValueError("its key is not the key of its problem")
        return entry

    def at(self, path: Path) -> Entry:
        """The same entry, with the path it lies at."""
        return replace(self, path=path)


def _values(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as a file has them; one that has a default may be absent. Raises KeyError."""
    known = [item for item in fields(kind) if item.name != "path"]
    required = {item.name for item in known if item.default is MISSING and item.default_factory is MISSING}
    return {item.name: data[item.name] for item in known if item.name in data or item.name in required}


def _config(data: Mapping[str, Any]) -> Config:
    """A config as a file has it. Raises TypeError for values that no config has."""
    if not all(isinstance(value, (int, str)) for value in dict(data).values()):
        raise TypeError("a config holds something else than whole numbers, text and booleans")
    return Config(data)


def _require(item: object, kind: type, *names: str) -> None:
    for name in names:
        value = getattr(item, name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}")


def _require_times(item: object, *names: str, smallest: float | None = None) -> None:
    """Finite numbers, positive or no smaller than ``smallest``."""
    for name in names:
        value = getattr(item, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TypeError(f"{name} is {value!r}")
        if value < smallest if smallest is not None else value <= 0:
            raise ValueError(f"{name} is {value!r}")


def problem_dict(problem: AttentionProblem) -> dict[str, Any]:
    """The problem as an entry keeps it."""
    return asdict(problem)
