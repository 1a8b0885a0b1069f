"""The `faops` command: its subcommands, and the boundary where errors become messages and exit codes.

Subcommands are imported when they are asked for, and they import faops (and with it torch) only when they run, so
`faops --help` answers at once.

Exit codes: 0 done, 1 refused or found broken, 2 the command line cannot be understood, 3 a defect of faops,
130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn, TextIO

import click

from . import autoload

FAILED = 1
INTERNAL_ERROR = 3
INTERRUPTED = 130

# Each is a module of this package that holds its click command as `command`; the order is the one of `faops --help`.
COMMANDS = ("doctor", "tune", "daemon", "explain", "profile", "kernels", "cache", "config", "version", "completion")


class CommandLine(click.Group):
    """The group of all subcommands; running it always ends in SystemExit with one of the documented codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        return command

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                code = super().main(*args, **kwargs)
            except click.ClickException as error:
                error.show()
                code = error.exit_code
            except click.Abort:  # click's form of Ctrl-C, and of the end of input at a question
                click.echo("interrupted", err=True)
                code = INTERRUPTED
            except Exception as error:
                code = _report(error)
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    """Print one message for an error that ended a command, and return the exit code for it."""
    if os.environ.get("FAOPS_DEBUG", "") not in ("", "0"):
        traceback.print_exc()
    if text := autoload.explained(error):
        click.echo(f"error: {text}", err=True)
        return FAILED
    if _is_deliberate(error):
        click.echo(f"error: {error}", err=True)
        return FAILED
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in ("faops", __package__):
        name = error.name or "a package"
        click.echo(f"error: {name} cannot be imported: {error}\nfix: pip install --upgrade faops", err=True)
        return FAILED
    text = " ".join(str(error).split()) or "no message"
    hint = "run with FAOPS_DEBUG=1 for the traceback"
    click.echo(f"internal error: {type(error).__name__}: {text}; {hint}", err=True)
    return INTERNAL_ERROR


def _is_deliberate(error: Exception) -> bool:
    """Whether faops raised this on purpose. It cannot have, if faops.errors was never imported."""
    errors = sys.modules.get("faops.errors")
    return errors is not None and isinstance(error, errors.FaopsError)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(f"warning: {message}", err=True)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command_line() -> None:
    """Fused attention: look at this machine, tune for it, and see which kernel runs.

    \b
    Examples:
      faops doctor                         is everything in order here?
      faops tune --list-models             models that can be tuned by name
      faops tune --model smollm2-135m      measure, and remember the fastest kernels
      faops explain --shape sq=1024,h=8,d=64,causal=1
    """


def main() -> NoReturn:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode gets "?" and not an error
    command_line.main(prog_name="faops")
