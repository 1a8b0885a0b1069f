"""`faops doctor`: is everything in order here, and what mends what is not?"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from .output import json_option, print_json, print_line, print_table
from .version import installed

if TYPE_CHECKING:
    from faops.doctor import Check, Finding

# status -> (mark, rich style); the mark alone says it, colour only helps.
MARKS = {
    "ok": ("ok", "green"),
    "warn": ("!", "yellow"),
    "fail": ("x", "red"),
    "skipped": ("-", "dim"),
    "crashed": ("?", "magenta"),
}
WORDS = {"fail": "failed", "crashed": "crashed", "warn": "warning", "ok": "ok", "skipped": "skipped"}


@click.command("doctor", short_help="Check this machine and name what mends it.")
@click.argument("names", nargs=-1, metavar="[CHECK_OR_GROUP]...")
@click.option("--strict", is_flag=True, help="Exit with 1 on a warning too.")
@click.option("--list-checks", is_flag=True, help="List the checks and run none.")
@click.option("--redact", is_flag=True, help="Leave out user name, home directory and host name.")
@click.option("-v", "--verbose", is_flag=True, help="Show the details of what is in order too.")
@json_option
def command(
    names: tuple[str, ...], strict: bool, list_checks: bool, redact: bool, verbose: bool, as_json: bool
) -> None:
    """Check this machine, group by group, and name the command that mends each finding.

    Marks: ok, ! warning, x failure, - nothing to check here, ? the check itself crashed. Exits with 0 when there are
    at most warnings and with 1 when something failed (with --strict also on a warning or a crash).

    \b
    Examples:
      faops doctor
      faops doctor torch kernels
      faops doctor cache.directory --json
      faops doctor --verbose --redact
    """
    from faops import doctor
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
    if as_json:
        for _ in running:
            pass
        document = {"findings": [finding.as_dict() for finding in findings], "counts": _counts(findings)}
        print_json("doctor", **_shown(document, redact))
    else:
        print_line(_heading(), style="bold")
        for group, members in groupby(running, key=lambda finding: finding.check.group):
            _print_group(group, list(members), redact, verbose)
        print_line()
        _print_summary(findings)
    grave = {"fail", "warn", "crashed"} if strict else {"fail"}
    if any(finding.result.status in grave for finding in findings):
        raise click.exceptions.Exit(1)


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


def _heading() -> str:
    return f"faops {installed('faops')}, torch {installed('torch')}, Python {platform.python_version()}"


def _print_group(group: str, findings: list[Finding], redact: bool, verbose: bool) -> None:
    from faops.doctor import worst

    mark, style = MARKS[worst(findings)]
    print_line(f"\n[{mark}]".ljust(6) + f" {group}", style=style)
    for finding in findings:
        result = finding.result
        mark, style = MARKS[result.status]
        summary, details, fix = _shown([result.summary, list(result.details), result.fix], redact)
        print_line(f"  {mark.ljust(3)} {finding.check.id}: {summary}", style=style)
        if verbose or result.status in ("warn", "fail", "crashed"):
            for detail in details:
                print_line(f"      {detail}")
        if fix:
            print_line(f"      fix: {fix}", style="bold")


def _counts(findings: list[Finding]) -> dict[str, int]:
    statuses = [finding.result.status for finding in findings]
    return {status: statuses.count(status) for status in WORDS}  # type: ignore[arg-type]


def _print_summary(findings: list[Finding]) -> None:
    counts = _counts(findings)
    parts = []
    for status, word in WORDS.items():
        if counts[status]:
            plural = "s" if status == "warn" and counts[status] > 1 else ""
            parts.append(f"{counts[status]} {word}{plural}")
    bad = counts["fail"] + counts["warn"] + counts["crashed"]
    print_line(", ".join(parts) + ("" if bad else ": no problem found"), style="" if bad else "green")
