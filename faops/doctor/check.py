"""What a check is, what it finds, and how checks are run so that a crashing one spoils nothing."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "skipped", "crashed"]

# From the mildest to the gravest.
SEVERITY: tuple[Status, ...] = ("skipped", "ok", "warn", "crashed", "fail")


@dataclass(frozen=True)
class Result:
    """What a check found. ``fix`` is the command that mends it; every result but ok and skipped has one."""

    status: Status
    summary: str
    details: tuple[str, ...] = ()
    fix: str = ""


def ok(summary: str, *details: str) -> Result:
    """All is well."""
    return Result("ok", summary, details)


def skipped(summary: str, *details: str) -> Result:
    """The check has nothing to look at on this machine."""
    return Result("skipped", summary, details)


def warn(summary: str, *details: str, fix: str) -> Result:
    """faops works, though not as well as it could."""
    return Result("warn", summary, details, fix)


def fail(summary: str, *details: str, fix: str) -> Result:
    """Something that faops needs does not work."""
    return Result("fail", summary, details, fix)


@dataclass(frozen=True)
class Check:
    """One thing to look at. ``id`` starts with the group; ``purpose`` says in a line what is looked at."""

    id: str
    group: str
    purpose: str
    run: Callable[[], Result]


@dataclass(frozen=True)
class Finding:
    """A check together with its result and the time it took, in seconds."""

    check: Check
    result: Result
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "id": self.check.id,
            "group": self.check.group,
            "status": self.result.status,
            "summary": self.result.summary,
            "details": list(self.result.details),
            "fix": self.result.fix,
            "seconds": self.seconds,
        }


def perform(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks in order, giving each finding as soon as there is one.

    An exception in a check becomes a result with status "crashed"; warnings given meanwhile become details.
    """
    for check in checks:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = check.run()
            except Exception as error:
                result = _crashed(check, error)
        said = tuple(f"warning: {warning.message}" for warning in caught)
        yield Finding(check, replace(result, details=result.details + said), time.perf_counter() - start)


def _crashed(check: Check, error: Exception) -> Result:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"at {last.filename}:{last.lineno}"
    fix = f"report this with the output of: faops doctor {check.id} --json --redact"
    return Result("crashed", f"the check itself failed: {type(error).__name__}: {error}", (where,), fix)


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status among the findings; "skipped" where there is none."""
    return max((finding.result.status for finding in findings), key=SEVERITY.index, default="skipped")
