"""Running checks: isolation of crashes and hangs, warnings, severity, choosing."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from faops import doctor
from faops.doctor import check, probes
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
    assert doctor.select(["two"], checks) == [checks[1]]
    assert doctor.select(["one", "b.one"], checks) == [checks[0], checks[2]]
    for name in ("c", "a.on", "ne"):
        with pytest.raises(ArgumentError, match=rf"check: got '{name}', expected a group"):
            doctor.select(["a", name], checks)


def test_a_group_comes_before_a_check_that_ends_like_it() -> None:
    real = doctor.checks()
    assert {check.group for check in doctor.select(["cuda"], real)} == {"cuda"}  # not driver.cuda
    assert {check.group for check in doctor.select(["kernels.triton"], real)} == {"kernels"}
    for name, meant in (("cupy", "cuda.cupy"), ("nvrtc", "cuda.nvrtc"), ("cann", "npu.cann")):
        assert [check.id for check in doctor.select([name], real)] == [meant]
    assert [check.id for check in doctor.select(["torch.sdpa_forward"], real)] == ["kernels.torch.sdpa_forward"]


def test_every_finding_that_is_not_fine_has_a_fix() -> None:
    """The helpers that make such results demand it."""
    for make in (warn, fail):
        with pytest.raises(TypeError):
            make("without a fix")  # type: ignore[call-arg]


# --- threads and limits -----------------------------------------------------------------------------------------------


def test_a_check_that_hangs_is_given_up_and_the_next_one_runs() -> None:
    never = threading.Event()
    hanging = replace(_check(lambda: ok(str(never.wait())), "group.hanging"), limit=0.05)
    start = time.perf_counter()
    first, second = perform([hanging, _check(lambda: ok("fine"))])
    assert time.perf_counter() - start < 5
    never.set()
    assert (first.result.status, second.result) == ("fail", ok("fine"))
    assert first.result.summary == "no answer within 0.05 s, so it was given up"
    assert first.result.details[0] == "looked at: for a test"
    assert "faops doctor group.hanging --report" in first.result.fix
    assert 0.05 <= first.seconds < 5


def test_threads_of_checks_do_not_keep_the_process_alive() -> None:
    """A hung driver call cannot be ended; the process has to end without it."""
    program = (
        f"import sys, time\nsys.path.insert(0, {str(Path(check.__file__).parent)!r})\n"
        "from check import Check, ok, perform\n"  # alone, since all of faops takes seconds to import
        "hanging = Check('a.b', 'a', 'hangs', lambda: ok(str(time.sleep(60))), limit=0.05)\n"
        "print([finding.result.status for finding in perform([hanging])])"
    )
    start = time.perf_counter()
    assert probes.output_of([sys.executable, "-c", program], 50.0) == (True, "['fail']")
    assert time.perf_counter() - start < 50


def test_slow_checks_are_begun_ahead_and_told_in_order() -> None:
    begun = threading.Event()

    def slow() -> Result:
        begun.set()
        return ok("slow")

    # The first check can only end once the last has begun.
    checks = [_check(lambda: ok(str(begun.wait(10))), "a.first"), replace(_check(slow, "a.slow"), ahead=True)]
    assert [finding.result.summary for finding in perform(checks)] == ["True", "slow"]


def test_a_warning_goes_to_the_check_that_gave_it() -> None:
    begun, warned = threading.Event(), threading.Event()

    def loud() -> Result:
        warnings.warn("loud", UserWarning, stacklevel=1)
        warned.set()
        return ok("loud")

    def quiet() -> Result:
        begun.set()
        assert warned.wait(10)
        return ok("quiet")

    quiet_finding, loud_finding = perform([_check(quiet, "a.quiet"), replace(_check(loud, "a.loud"), ahead=True)])
    assert begun.is_set()
    assert (quiet_finding.result.details, loud_finding.result.details) == ((), ("warning: loud",))


def test_warnings_between_findings_show_as_usual() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in perform([_check(lambda: ok("")), _check(lambda: ok(""))]):
            warnings.warn("of the caller", UserWarning, stacklevel=1)
            warnings.warn("not shown by default", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of the caller"] * 2
