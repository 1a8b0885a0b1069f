"""The recorded schemas of the torch_npu operators, read from the one file that the library plans with."""

from __future__ import annotations

import json
from pathlib import Path

import faops.backends.npu

FILE = Path(faops.backends.npu.__file__).parent / "schemas.json"
_RECORD = json.loads(FILE.read_text())

VERSIONS: tuple[str, ...] = tuple(_RECORD["versions"])
OPERATORS: tuple[str, ...] = tuple(_RECORD["operators"])


def recorded(version: str) -> dict[str, str]:
    """Operator to schema text of one version of torch_npu; operators that it lacks are left out.

    A short version such as "2.6.0" means the recorded one that begins with it.
    """
    full = next((known for known in VERSIONS if known == version or known.startswith(f"{version}.")), None)
    if full is None:
        raise ValueError(f"version {version!r} is not recorded; these are: {', '.join(VERSIONS)}")
    return {
        operator: entry["schema"]
        for operator, entries in _RECORD["operators"].items()
        for entry in entries
        if full in entry["versions"]
    }
