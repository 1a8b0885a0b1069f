"""The token that requests over TCP must bring. Who can read its file is the daemon's user anyway."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from faops.errors import DaemonError
from faops.files import read_whole, write_whole

BYTES = 32
LONGEST = 256


def make() -> str:
    """A new token: it goes into URLs as it is."""
    return secrets.token_urlsafe(BYTES)


def write(path: Path, token: str) -> None:
    """Write a token to a file that its user alone can read (0600). Raises DaemonError."""
    before = os.umask(0o177)
    try:
        write_whole(path, token + "\n")
    except OSError as error:
        raise DaemonError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        os.umask(before)


def read(path: Path) -> str:
    """The token in a file. Raises DaemonError."""
    try:
        return read_whole(path, LONGEST).strip()
    except (OSError, ValueError) as error:
        raise DaemonError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def equal(given: str, token: str) -> bool:
    """Whether somebody knows the token. How long the answer takes says nothing about it."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode("utf-8"))
