"""What a check is, what it finds, and how checks are run so that one that crashes or hangs spoils nothing."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "skipped", "crashed"]

LIMIT_SECONDS = 60.0  # of a check that says nothing else; all but the compiling ones take far less than a second
# What Python does not show by default either.
UNSHOWN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)

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
    """One thing to look at. ``id`` starts with the group; ``purpose`` says in a line what is looked at.

    After ``limit`` seconds it is given up. One that is slow and independent of the others is begun ``ahead``: with the
    first check, beside those that come before it.
    """

    id: str
    group: str
    purpose: str
    run: Callable[[], Result]
    limit: float = LIMIT_SECONDS
    ahead: bool = False


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
    """Run the checks, giving their findings in order, each as soon as there is one.

    An exception in a check becomes a result with status "crashed"; warnings given meanwhile become details. A check
    that does not end within its limit fails, and is left behind in its thread.
    """
    with _warnings_by_thread() as heard:
        runs = [_Run(check, heard) for check in checks]
        for run in runs:
            if run.check.ahead:
                run.start()
        for run in runs:
            run.start()
            yield run.finding()


class _Run:
    """A check in a thread of its own, which does not keep the process alive."""

    def __init__(self, check: Check, heard: dict[int, list[str]]) -> None:
        self.check = check
        self._heard = heard
        self._thread = threading.Thread(target=self._work, name=f"faops doctor {check.id}", daemon=True)
        self._began = self._seconds = 0.0
        self._result: Result | None = None
        self._escaped: BaseException | None = None

    def start(self) -> None:
        """Begin, once."""
        if not self._began:
            self._began = time.perf_counter()
            self._thread.start()

    def finding(self) -> Finding:
        """Wait for the result, no longer than the check's limit."""
        self._thread.join(max(0.0, self._began + self.check.limit - time.perf_counter()))
        if self._escaped is not None:
            raise self._escaped
        if self._result is None:
            return Finding(self.check, _unanswered(self.check), time.perf_counter() - self._began)
        return Finding(self.check, self._result, self._seconds)

    def _work(self) -> None:
        said = self._heard.setdefault(threading.get_ident(), [])
        said.clear()  # of an earlier thread with the same number
        try:
            result = self.check.run()
        except Exception as error:
            result = _crashed(self.check, error)
        except BaseException as error:  # Ctrl-C and the like are for the caller
            self._escaped = error
            return
        self._seconds = time.perf_counter() - self._began
        self._result = replace(result, details=result.details + tuple(said))


@contextlib.contextmanager
def _warnings_by_thread() -> Iterator[dict[int, list[str]]]:
    """Notes every warning for the thread that gives it, if that thread is in the dict; the others show as usual."""
    heard: dict[int, list[str]] = {}
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            said = heard.get(threading.get_ident())
            if said is not None:
                said.append(f"warning: {message}")
            elif not issubclass(category, UNSHOWN):
                usual(message, category, *where, **more)

        warnings.simplefilter("always")
        warnings.showwarning = note
        yield heard


def _crashed(check: Check, error: Exception) -> Result:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"at {last.filename}:{last.lineno}"
    return Result("crashed", f"the check itself failed: {type(error).__name__}: {error}", (where,), _report(check))


def _unanswered(check: Check) -> Result:
    text = f"no answer within {check.limit:g} s, so it was given up"
    return fail(text, f"looked at: {check.purpose}", "what hangs may be the driver, a disk or a compiler",
                fix=_report(check))  # fmt: skip


def _report(check: Check) -> str:
    return f"report this with the output of: faops doctor {check.id} --report"


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status among the findings; "skipped" where there is none."""
    return max((finding.result.status for finding in findings), key=SEVERITY.index, default="skipped")
