"""One tuned winner with everything that was measured for it, and its JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from faops.autotune.environment import SCHEMA
from faops.problem import AttentionProblem
from faops.registry import Config


class ForeignEntryError(ValueError):
    """The text is whole, but no entry that this version of faops can read."""


class NewerEntryError(ForeignEntryError):
    """The entry was written by a newer version of faops."""


@dataclass(frozen=True)
class Timing:
    """How long one config of one kernel takes. Times in seconds a call; ``mad`` is the median absolute deviation."""

    kernel: str
    config: Config
    p20: float
    p50: float
    p80: float
    mad: float
    n: int
    noisy: bool

    def as_dict(self) -> dict[str, Any]:
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "config": dict(self.config)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Timing:
        known = {item.name: data[item.name] for item in fields(Timing)}
        known["config"] = Config(known["config"])
        return Timing(**known)


@dataclass(frozen=True)
class Entry:
    """The winner of one tuned problem on one device in one environment.

    ``key`` is the problem's cache key in clear; ``device`` the device's identity; ``measurements`` the number of
    timings taken; ``speedup`` default_p50 / p50 (1.0 when the default won); ``dropped`` the configs that failed,
    each with its error.
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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ForeignEntryError(f"it is no valid tuning entry ({type(error).__name__}: {error})") from None

    @staticmethod
    def _from_dict(data: dict[str, Any]) -> Entry:
        values = {item.name: data[item.name] for item in fields(Entry) if item.name != "path"}
        values["config"] = Config(values["config"])
        values["default_config"] = Config(values["default_config"])
        values["timings"] = tuple(Timing.from_dict(timing) for timing in values["timings"])
        values["dropped"] = tuple(dict(item) for item in values["dropped"])
        entry = Entry(**values)
        for name in ("key", "device", "kernel", "source_hash", "default_kernel", "date"):
            if not isinstance(getattr(entry, name), str):
                raise TypeError(f"{name} is not text")
        if not isinstance(entry.environment, dict):
            raise TypeError("environment is not an object")
        for name in ("p50", "default_p50", "speedup"):
            if not float(getattr(entry, name)) > 0:
                raise ValueError(f"{name} is not positive")
        if entry.attention_problem().key() != entry.key:
            raise ValueError("its key is not the key of its problem")
        return entry

    def at(self, path: Path) -> Entry:
        """The same entry, with the path it lies at."""
        return replace(self, path=path)


def file_name(key: str) -> str:
    """Name of the file that holds the entry of ``key``."""
    return hashlib.sha256(key.encode()).hexdigest()[:32] + ".json"


def problem_dict(problem: AttentionProblem) -> dict[str, Any]:
    """The problem as an entry keeps it."""
    return asdict(problem)
