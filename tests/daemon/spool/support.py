"""Misses as programs write them, in a cache that a test makes up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from faops.daemon.spool import SpoolMiss
from faops.files import file_name

IDENTITY, ENVIRONMENT = "cpu_x86-64_4t", "schema-1_torch-2.13.0"
DEVICE = {"torch_type": "cpu", "threads": 4, "name": "some CPU"}
PROBLEM = {"op": "forward", "seqlen_q": 16, "band": {"left": -1, "right": 0}}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def directory(root: Path, identity: str = IDENTITY, environment: str = ENVIRONMENT) -> Path:
    return root / "tune" / "v1" / identity / environment / "misses"


def content(key: str, /, **changes: Any) -> dict[str, Any]:
    values = {"schema": 1, "key": key, "problem": PROBLEM, "device": DEVICE, "date": "2026-11-21"}
    return {**values, "faops_version": "0.1.0", **changes}


def write(place: Path, key: str, text: str | bytes | None = None, /, **changes: Any) -> Path:
    """A miss, or what is given as text in its place."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / file_name(key)
    if text is None:
        text = json.dumps(content(key, **changes))
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def settle(*places: Path) -> None:
    """Make it long ago that anything was written there."""
    for place in places:
        os.utime(place, (1e9, 1e9))


def keys(found: list[SpoolMiss]) -> list[str]:
    return sorted(miss.key for miss in found)
