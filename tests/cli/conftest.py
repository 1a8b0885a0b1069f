"""Commands are run in this process with the fixture `faops`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from faops_cli.main import command_line

Faops = Callable[..., Result]


@pytest.fixture(autouse=True)
def _idle(idle_machine: None) -> None:
    """Every test here tunes on a machine that is idle as far as the tuner can see."""


@pytest.fixture
def faops() -> Faops:
    """Runs the command line in this process: `faops("tune", "--dry-run")` gives click's Result.

    What is tuned is measured in this process too; to start another takes seconds, and is left to tests of real runs.
    """
    unless_named = {"tune": {"no_isolate": True}}

    def run(*arguments: str, **options: object) -> Result:
        options = {"prog_name": "faops", "default_map": unless_named, **options}
        return CliRunner().invoke(command_line, list(arguments), **options)  # type: ignore[arg-type]

    return run
