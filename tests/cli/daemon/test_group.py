"""The group as a whole: what it imports, and where it does not work."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

import click
import pytest
from faops_cli.daemon import command as group
from faops_cli.daemon import reach

from faops.daemon import paths
from tests.cli.conftest import Faops
from tests.cli.daemon.support import FakeDaemon, served
from tests.cli.support import python, refused

ASKING = ("status", "jobs", "resume", "pause", "open")


def test_help_lists_every_command_and_its_purpose(faops: Faops) -> None:
    text = faops("daemon", "--help").stdout
    for name, command in group.commands.items():
        assert re.search(rf"^  {name} +{re.escape(command.get_short_help_str(100))}$", text, re.MULTILINE), name
    assert "Examples:\n" in text and "..." not in text.split("Commands:")[1]


def test_every_example_can_be_understood(faops: Faops) -> None:
    """Names of commands and options in the help exist; nothing is run."""
    examples = 0
    for name, command in group.commands.items():
        for line in (command.help or "").split("Examples:")[1].splitlines():
            words = line.split("|")[0].split()
            if words[:2] != ["faops", "daemon"]:
                continue
            named = group.commands[words[2]]
            options = {option for parameter in named.params for option in parameter.opts}
            assert {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} <= options, (name, line)
            examples += 1
    assert examples >= 2 * len(group.commands)


@pytest.mark.parametrize("arguments", [("status",), ("submit", "--shape", "sq=1,h=1,d=8")])
def test_no_torch(arguments: tuple[str, ...]) -> None:
    """A process that asks the daemon, or finds none, answers at once: torch alone would take seconds to import."""
    daemon = FakeDaemon()
    submission = {"id": 1, "state": "expanded", "message": "", "jobs": [], "created": None}
    daemon.answers["POST /v1/submissions"] = (202, submission)
    code = (
        "import sys\n"
        "from faops_cli.main import command_line\n"
        "try:\n    command_line.main(sys.argv[1:], prog_name='faops')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = [name for name in ('torch', 'numpy', 'starlette', 'uvicorn') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    with served(daemon, paths.socket_path()):
        done = python("-c", code, "daemon", *arguments)
    assert done.returncode == 0, done.stderr


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        reach.importlib.util, "find_spec", lambda name, *more: None if name in packages else usual(name, *more)
    )


@pytest.mark.parametrize("name", ASKING)
def test_without_the_client_package(faops: Faops, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, "httpx")
    refused(faops("daemon", name), "not installed: httpx", "fix: pip install 'faops[daemon]'")


@pytest.mark.parametrize("name", ["run", "start", "install"])
def test_without_the_server_packages(faops: Faops, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without(monkeypatch, "uvicorn", "starlette")
    refused(faops("daemon", name), "not installed: starlette, uvicorn", "fix: pip install 'faops[daemon]'")


@pytest.mark.parametrize("arguments", [(name,) for name in group.commands if name not in ("cancel", "retry", "submit")])
def test_on_windows(faops: Faops, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    refused(faops("daemon", *arguments), "does not run on Windows", "faops tune --from-misses")


def test_a_setting_that_makes_no_sense(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", "/tmp/" + "x" * 200)
    refused(faops("daemon", "status"), "FAOPS_RUNTIME_DIR")


def test_a_runtime_directory_that_is_open_to_others(faops: Faops) -> None:
    paths.runtime_directory().chmod(0o777)
    refused(faops("daemon", "status"), "is open to others", "chmod 700")


def test_commands_are_told_by_their_names() -> None:
    """Each stands in a module of its own, which imports nothing heavy."""
    for name, command in group.commands.items():
        assert isinstance(command, click.Command) and command.callback is not None
        module: Any = sys.modules[command.callback.__module__]
        assert module.__name__.rpartition(".")[2] in (name, f"{name}_page")
        assert module.__doc__.startswith(f"`faops daemon {name}`:")
