"""Commands are run in this process with the fixture `faops`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from faops_cli.main import command_line

Faops = Callable[..., Result]


@pytest.fixture
def faops() -> Faops:
    """Runs the command line in this process: `faops("tune", "--dry-run")` gives click's Result."""

    def run(*arguments: str, **options: object) -> Result:
        return CliRunner().invoke(command_line, list(arguments), prog_name="faops", **options)  # type: ignore[arg-type]

    return run
