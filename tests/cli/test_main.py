"""The command line as a whole: help, exit codes, laziness, pipes."""

from __future__ import annotations

import itertools
import os
import pty
import signal
import subprocess
import sys

import click
import pytest
from faops_cli.main import COMMANDS, command_line

from faops.errors import FaopsError, FaopsWarning
from tests.cli.conftest import Faops
from tests.cli.support import document, python, read_terminal

ESCAPE = "\x1b"


def every_command() -> list[tuple[str, ...]]:
    """Names of every command that can be run, such as ("cache", "ls")."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = command_line.get_command(click.Context(command_line), name)
        assert command is not None
        found += [(name, sub) for sub in command.commands] if isinstance(command, click.Group) else [(name,)]
    return found


@pytest.mark.parametrize("command", [(), ("cache",), *every_command()], ids=" ".join)
def test_help_has_examples(faops: Faops, command: tuple[str, ...]) -> None:
    result = faops(*command, "--help")
    assert result.exit_code == 0
    assert f"Usage: faops {' '.join(command)}".rstrip() in result.stdout
    assert "Examples:\n" in result.stdout
    assert f"  faops {' '.join(command)}".rstrip() in result.stdout.split("Examples:")[1]
    assert max(map(len, result.stdout.splitlines())) <= 110


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_json(command: tuple[str, ...]) -> None:
    context = click.Context(command_line)
    found = command_line.get_command(context, command[0])
    if isinstance(found, click.Group):
        found = found.get_command(context, command[1])
    assert found is not None
    assert any("--json" in parameter.opts for parameter in found.params)


def test_help_lists_every_command(faops: Faops) -> None:
    text = faops("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "..." not in text.split("Commands:")[1]


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["tune", "--help"], ["completion", "bash"]])
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from faops_cli.main import main\n"
        "sys.argv[0] = 'faops'\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = [name for name in ('torch', 'rich', 'faops', 'yaml', 'numpy') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr


def test_unknown_command_is_a_usage_error(faops: Faops) -> None:
    result = faops("tnue")
    assert result.exit_code == 2
    assert "tnue" in result.stderr


def test_unknown_option_is_a_usage_error(faops: Faops) -> None:
    result = faops("doctor", "--quick")
    assert result.exit_code == 2
    assert "--quick" in result.stderr


@pytest.fixture
def broken_version(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes `faops version` raise a given exception."""
    import faops_cli.version

    def breaks_with(error: BaseException) -> None:
        def raising(_: str) -> str:
            raise error

        monkeypatch.setattr(faops_cli.version, "installed", raising)

    return breaks_with


def test_deliberate_errors_are_one_message(faops: Faops, broken_version) -> None:  # type: ignore[no-untyped-def]
    broken_version(FaopsError("the shape is wrong"))
    result = faops("version")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: the shape is wrong\n")


def test_unexpected_errors_are_one_line(faops: Faops, broken_version) -> None:  # type: ignore[no-untyped-def]
    broken_version(ZeroDivisionError("several\nlines"))
    result = faops("version")
    assert result.exit_code == 3
    assert result.stderr == (
        "internal error: ZeroDivisionError: several lines; run with FAOPS_DEBUG=1 for the traceback\n"
    )


def test_debug_shows_the_traceback(  # type: ignore[no-untyped-def]
    faops: Faops, broken_version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAOPS_DEBUG", "1")
    broken_version(ZeroDivisionError("odd"))
    result = faops("version")
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr


def test_missing_package_is_named(faops: Faops, broken_version) -> None:  # type: ignore[no-untyped-def]
    broken_version(ModuleNotFoundError("No module named 'torch'", name="torch"))
    result = faops("version")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: torch cannot be imported: No module named 'torch'\nfix: pip install")


def test_missing_module_of_faops_is_a_defect(faops: Faops, broken_version) -> None:  # type: ignore[no-untyped-def]
    broken_version(ModuleNotFoundError("No module named 'faops.gone'", name="faops.gone"))
    assert faops("version").exit_code == 3


def test_interrupt_exits_with_130(faops: Faops, broken_version) -> None:  # type: ignore[no-untyped-def]
    broken_version(KeyboardInterrupt())
    result = faops("version")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


@pytest.mark.filterwarnings("default::faops.errors.FaopsWarning")
def test_warnings_are_one_line(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    import faops_cli.version

    def warning(_: str) -> str:
        warnings.warn("an entry is not used", FaopsWarning, stacklevel=2)
        return "1"

    monkeypatch.setattr(faops_cli.version, "installed", warning)
    result = faops("version")
    assert result.exit_code == 0
    assert set(result.stderr.splitlines()) == {"warning: an entry is not used"}


def test_real_interrupt_of_a_running_command() -> None:
    code = (
        # A test run in the background ignores the signal, and so would all that it starts.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time, faops_cli.version as version\n"
        "from faops_cli.main import command_line\n"
        "def slow(name):\n    print('started', flush=True)\n    time.sleep(60)\n"
        "version.installed = slow\n"
        "command_line.main(['version'], prog_name='faops')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_closed_pipe_is_quiet() -> None:
    """The reader goes away before anything is written, as with `faops completion bash | true`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "faops_cli", "completion", "fish"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=30)
    process.stderr.close()
    assert errors == b""


PLAIN = (
    ["--help"],
    ["version"],
    ["config"],
    ["kernels"],
    ["doctor", "python", "cache"],
    ["explain", "--shape", "sq=8,h=1,d=8"],
)


@pytest.mark.parametrize("arguments", PLAIN, ids=lambda arguments: arguments[0])
def test_piped_output_is_plain(faops: Faops, arguments: list[str]) -> None:
    result = faops(*arguments)
    assert result.exit_code == 0, result.output
    assert ESCAPE not in result.output
    assert result.stdout.isascii()


def test_module_run_when_piped_is_plain() -> None:
    """Also where the output takes no more than ASCII."""
    done = python("-m", "faops_cli", "config", PYTHONIOENCODING="ascii", FAOPS_CACHE_DIR="/tmp/größe")
    assert done.returncode == 0, done.stderr
    assert ESCAPE not in done.stdout
    assert "/tmp/gr" in done.stdout
    assert "FAOPS_BACKEND" in done.stdout


def test_terminal_output_has_colour_and_the_same_words() -> None:
    """A pseudo-terminal stands in for a person's."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "faops_cli", "doctor", "python"], stdout=slave, stderr=slave, stdin=slave, env=env
    )
    os.close(slave)
    text = read_terminal(master)
    assert process.wait(timeout=60) == 0
    assert ESCAPE in text
    assert "python.version" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_heavier_to_import_than_click(name: str) -> None:
    """Checked here for all: a command module imports faops only when it runs."""
    code = f"import sys, faops_cli.{name}; assert not {{'torch', 'rich', 'faops'}} & set(sys.modules)"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_documents_name_their_command(faops: Faops) -> None:
    for command in itertools.chain(("version",), ("config",), ("kernels",)):
        assert document(faops(command, "--json"))["command"] == command
