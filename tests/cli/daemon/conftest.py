"""The commands talk to a fake daemon on the socket of a private runtime directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from faops.daemon import paths
from tests.cli.daemon.support import FakeDaemon, served
from tests.daemon.conftest import private_daemon

__all__ = ["private_daemon"]


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """A daemon that runs, idle, until a test says something else."""
    with served(FakeDaemon(), paths.socket_path()) as running:
        yield running
