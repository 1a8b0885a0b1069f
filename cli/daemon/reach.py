"""Reaching the daemon: whether it can run here at all, and the client that talks to it."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from faops.daemon.client import Client

# What the daemon serves with, and what its clients ask with.
SERVER_PACKAGES = ("starlette", "uvicorn", "prometheus_client")
CLIENT_PACKAGES = ("httpx",)
INSTALL = "pip install 'faops[daemon]'"


def client() -> Client:
    """A client of this user's daemon, closed at the end of the command. Raises DaemonError where there can be none."""
    require(CLIENT_PACKAGES)
    from faops.daemon.client import Client

    return click.get_current_context().with_resource(Client())


def require(packages: tuple[str, ...] = ()) -> None:
    """Raise DaemonError on a system that the daemon does not run on, and where one of the packages is missing."""
    from faops.errors import DaemonError

    if sys.platform == "win32":
        raise DaemonError(
            "the daemon needs Unix sockets, and does not run on Windows; `faops tune --from-misses` tunes by hand"
        )
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DaemonError(f"the daemon needs packages that are not installed: {', '.join(missing)}\nfix: {INSTALL}")
