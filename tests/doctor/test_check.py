"""Running checks: isolation of crashes, warnings, severity, choosing."""

from __future__ import annotations

import warnings

import pytest

from faops import doctor
from faops.doctor.check import SEVERITY, Check, Finding, Result, fail, ok, perform, skipped, warn, worst
from faops.errors import ArgumentError


def _check(run, name: str = "group.check") -> Check:  # type: ignore[no-untyped-def]
    return Check(name, name.partition(".")[0], "for a test", run)


def test_a_crashing_check_is_reported_and_the_next_one_runs() -> None:
    def crash() -> Result:
        raise ZeroDivisionError("by nothing")

    first, second = perform([_check(crash), _check(lambda: ok("fine"))])
    assert first.result.status == "crashed"
    assert first.result.summary == "the check itself failed: ZeroDivisionError: by nothing"
    assert __file__ in first.result.details[0]
    assert "faops doctor group.check" in first.result.fix
    assert second.result == ok("fine")


def test_interrupt_is_not_swallowed() -> None:
    def interrupted() -> Result:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(perform([_check(interrupted)]))


def test_checks_run_only_when_asked_for() -> None:
    ran: list[int] = []
    running = perform([_check(lambda number=number: ran.append(number) or ok("")) for number in range(3)])
    next(iter(running))
    assert ran == [0]


def test_warnings_become_details() -> None:
    def warning() -> Result:
        warnings.warn("odd thing", UserWarning, stacklevel=1)
        return ok("fine", "first")

    (finding,) = perform([_check(warning)])
    assert finding.result.details == ("first", "warning: odd thing")


def test_finding_as_dict() -> None:
    finding = Finding(_check(lambda: ok("")), warn("a", "b", fix="c"), 0.5)
    assert finding.as_dict() == {
        "id": "group.check", "group": "group", "status": "warn", "summary": "a", "details": ["b"], "fix": "c",
        "seconds": 0.5,
    }  # fmt: skip


def test_worst_follows_severity() -> None:
    results = {"ok": ok(""), "warn": warn("", fix="x"), "fail": fail("", fix="x"), "skipped": skipped("")}
    findings = {status: Finding(_check(lambda: ok("")), result, 0.0) for status, result in results.items()}
    assert worst([]) == "skipped"
    assert worst([findings["skipped"], findings["ok"]]) == "ok"
    assert worst([findings["warn"], findings["ok"]]) == "warn"
    assert worst(findings.values()) == "fail"
    assert SEVERITY.index("warn") < SEVERITY.index("crashed") < SEVERITY.index("fail")


def test_real_checks_have_unique_names_in_their_groups() -> None:
    checks = doctor.checks()
    assert len({check.id for check in checks}) == len(checks)
    assert {check.group for check in checks} == set(doctor.GROUPS)
    assert all(check.id.startswith(f"{check.group}.") for check in checks)


def test_select() -> None:
    checks = [_check(lambda: ok(""), name) for name in ("a.one", "a.two", "b.one")]
    assert doctor.select([], checks) == checks
    assert doctor.select(["b", "a.one"], checks) == [checks[0], checks[2]]
    with pytest.raises(ArgumentError, match=r"check: got 'c', expected a group"):
        doctor.select(["a", "c"], checks)


def test_every_finding_that_is_not_fine_has_a_fix() -> None:
    """The helpers that make such results demand it."""
    for make in (warn, fail):
        with pytest.raises(TypeError):
            make("without a fix")  # type: ignore[call-arg]
