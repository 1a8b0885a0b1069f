"""`faops doctor`: is everything in order here, and what mends what is not?"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from itertools import groupby
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from . import autoload
from .output import json_option, print_json, print_line, print_table
from .version import installed

if TYPE_CHECKING:
    from faops.doctor import Check, Finding

# status -> rich style; the mark alone says it, colour only helps.
STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": "dim", "crashed": "magenta"}
BAD = ("warn", "fail", "crashed")


@click.command("doctor", short_help="Check this machine and name what mends it.")
@click.argument("names", nargs=-1, metavar="[CHECK_OR_GROUP]...")
@click.option("--strict", is_flag=True, help="Exit with 1 on a warning too.")
@click.option("--list-checks", is_flag=True, help="List the checks and run none.")
@click.option("--report", is_flag=True, help="Print a block of Markdown to paste into a bug report.")
@click.option(
    "--redact/--no-redact",
    default=None,
    help="Leave out names, home directory, addresses and keys; --report does so by itself.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the details of what is in order too.")
@json_option
def command(
    names: tuple[str, ...],
    strict: bool,
    list_checks: bool,
    report: bool,
    redact: bool | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Check this machine, group by group, and name the command that mends each finding.

    Marks: ok, ! warning, x failure, - nothing to check here, ? the check itself crashed. Exits with 0 when there are
    at most warnings and with 1 when something failed (with --strict also on a warning or a crash).

    \b
    Examples:
      faops doctor
      faops doctor torch kernels
      faops doctor cache.directory --json
      faops doctor --report
    """
    if report and as_json:
        raise click.UsageError("--report prints Markdown and --json JSON: choose one")
    doctor = _load()
    from faops.errors import ArgumentError

    try:
        checks = doctor.select(names, doctor.checks())
    except ArgumentError as error:
        raise click.UsageError(str(error)) from None
    if list_checks:
        _list(checks, as_json)
        return
    findings: list[Finding] = []
    running = _noting(doctor.perform(checks), findings)
    if report:
        _print_report(list(running), redact is not False)
    elif as_json:
        _print_json(list(running), bool(redact))
    else:
        print_line(_heading(), style="bold")
        for group, members in groupby(running, key=lambda finding: finding.check.group):
            _print_group(group, list(members), bool(redact), verbose)
        print_line()
        _print_summary(findings)
    grave = BAD if strict else ("fail",)
    if any(finding.result.status in grave for finding in findings):
        raise click.exceptions.Exit(1)


def _load() -> ModuleType:
    """The checks. They need PyTorch, and where that cannot even be imported this is all there is to say.

    Where only what PyTorch loads by itself is at fault, the checks run without it, and tell of it.
    """
    autoload.spare_this_process()
    try:
        from faops import doctor
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "faops":
            raise
        raise click.ClickException(_cannot_import(error)) from None
    except (OSError, RuntimeError) as error:  # a library of PyTorch
        raise click.ClickException(_cannot_import(error)) from None
    return doctor


def _cannot_import(error: Exception) -> str:
    mend = "pip install --upgrade --force-reinstall torch"
    return f"PyTorch cannot be imported, and nothing else checked: {type(error).__name__}: {error}\nfix: {mend}"


def _noting(running: Iterable[Finding], findings: list[Finding]) -> Iterable[Finding]:
    """Pass findings on as they come, and keep them."""
    for finding in running:
        findings.append(finding)
        yield finding


def _shown(value: Any, redact: bool) -> Any:
    from faops.doctor.redact import redact as redacted

    return redacted(value) if redact else value


def _list(checks: list[Check], as_json: bool) -> None:
    if as_json:
        listed = [{"id": check.id, "group": check.group, "purpose": check.purpose} for check in checks]
        print_json("doctor", checks=listed)
        return
    print_table(("check", "group", "purpose"), [(check.id, check.group, check.purpose) for check in checks])


def _print_report(findings: list[Finding], redact: bool) -> None:
    from faops.doctor.report import markdown

    print_line(markdown(findings, redact))


def _print_json(findings: list[Finding], redact: bool) -> None:
    from faops.doctor.report import counts

    document = {"findings": [finding.as_dict() for finding in findings], "counts": counts(findings)}
    print_json("doctor", **_shown(document, redact))


def _heading() -> str:
    return f"faops {installed('faops')}, torch {installed('torch')}, Python {platform.python_version()}"


def _print_group(group: str, findings: list[Finding], redact: bool, verbose: bool) -> None:
    from faops.doctor import worst

    status = worst(findings)
    print_line()
    print_line(f"[{_mark(status)}]".ljust(5) + f" {group}", style=STYLES[status])
    for same in _alike(findings, apart=verbose):
        result = same[0].result
        names = ", ".join(finding.check.id for finding in same)
        summary, details, fix = _shown([result.summary, list(result.details), result.fix], redact)
        print_line(f"  {_mark(result.status).ljust(3)} {names}: {summary}", style=STYLES[result.status])
        if verbose or result.status in BAD:
            for detail in details:
                print_line(f"      {detail}")
        if fix:
            print_line(f"      fix: {fix}", style="bold")


def _alike(findings: list[Finding], apart: bool) -> Iterable[list[Finding]]:
    """The findings one by one; those that were skipped for the same reason together, unless ``apart``."""
    together: dict[object, list[Finding]] = {}
    for index, finding in enumerate(findings):
        same = finding.result.status == "skipped" and not apart
        together.setdefault(finding.result.summary if same else index, []).append(finding)
    return together.values()


def _mark(status: str) -> str:
    from faops.doctor.report import MARKS

    return MARKS[status]


def _print_summary(findings: list[Finding]) -> None:
    from faops.doctor.report import summary

    bad = any(finding.result.status in BAD for finding in findings)
    print_line(summary(findings) + ("" if bad else ": no problem found"), style="" if bad else "green")
