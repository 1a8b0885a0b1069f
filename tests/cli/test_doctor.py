"""`faops doctor` as a command: layout, exit codes, choosing checks, redaction. What checks find: tests/doctor."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
import pytest
from faops_cli.main import command_line

from faops import doctor
from faops.doctor.check import Check, Result, fail, ok, skipped, warn
from tests.cli.conftest import Faops
from tests.cli.support import document, python, refused

FINE = Check("one.fine", "one", "is fine", lambda: ok("all is well", "a detail"))
ABSENT = Check("one.absent", "one", "has nothing to do", lambda: skipped("nothing here"))
WORRYING = Check("two.worrying", "two", "worries", lambda: warn("not so well", "because", fix="mend it"))
BROKEN = Check("two.broken", "two", "is broken", lambda: fail("not at all", fix="mend it more"))


def _crash() -> Result:
    raise RuntimeError("the check is wrong")


CRASHING = Check("two.crashing", "two", "crashes", _crash)


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes the given checks the only ones."""

    def set_checks(*checks: Check) -> None:
        monkeypatch.setattr(doctor, "checks", lambda: list(checks))

    return set_checks


def test_layout(faops: Faops, having) -> None:  # type: ignore[no-untyped-def]
    having(FINE, ABSENT, WORRYING, BROKEN, CRASHING)
    result = faops("doctor")
    assert result.exit_code == 1
    heading, *lines = result.stdout.splitlines()
    assert heading.startswith("faops ")
    assert [line for line in lines if not line.startswith("      at ")] == [
        "",
        "[ok]  one",
        "  ok  one.fine: all is well",
        "  -   one.absent: nothing here",
        "",
        "[x]   two",
        "  !   two.worrying: not so well",
        "      because",
        "      fix: mend it",
        "  x   two.broken: not at all",
        "      fix: mend it more",
        "  ?   two.crashing: the check itself failed: RuntimeError: the check is wrong",
        "      fix: report this with the output of: faops doctor two.crashing --report",
        "",
        "1 failed, 1 crashed, 1 warning, 1 ok, 1 skipped",
    ]
    assert "a detail" in faops("doctor", "--verbose").stdout


@pytest.mark.parametrize(
    ("checks", "code", "strict_code"),
    [
        ((FINE, ABSENT), 0, 0),
        ((FINE, WORRYING), 0, 1),
        ((FINE, CRASHING), 0, 1),
        ((FINE, BROKEN, WORRYING), 1, 1),
    ],
)
def test_exit_codes(faops: Faops, having, checks: tuple[Check, ...], code: int, strict_code: int) -> None:  # type: ignore[no-untyped-def]
    having(*checks)
    for arguments in ((), ("--json",)):
        assert faops("doctor", *arguments).exit_code == code
        assert faops("doctor", "--strict", *arguments).exit_code == strict_code


def test_json(faops: Faops, having) -> None:  # type: ignore[no-untyped-def]
    having(FINE, WORRYING)
    found = document(faops("doctor", "--json"))
    assert [(row["id"], row["status"], row["fix"]) for row in found["findings"]] == [
        ("one.fine", "ok", ""),
        ("two.worrying", "warn", "mend it"),
    ]
    assert found["counts"] == {"fail": 0, "crashed": 0, "warn": 1, "ok": 1, "skipped": 0}


def test_names_and_groups_choose_checks(faops: Faops, having) -> None:  # type: ignore[no-untyped-def]
    having(FINE, ABSENT, WORRYING, BROKEN)
    found = document(faops("doctor", "one", "two.worrying", "--json"))
    assert [row["id"] for row in found["findings"]] == ["one.fine", "one.absent", "two.worrying"]


def test_unknown_name_is_a_usage_error(faops: Faops) -> None:
    refused(faops("doctor", "pyhton"), "'pyhton'", "kernels", "--list-checks", code=2)


def test_list_checks_runs_none(faops: Faops, having) -> None:  # type: ignore[no-untyped-def]
    having(FINE, BROKEN)
    result = faops("doctor", "--list-checks")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split() == ["one.fine", "one", "is", "fine"]
    assert document(faops("doctor", "--list-checks", "--json"))["checks"][1] == {
        "id": "two.broken", "group": "two", "purpose": "is broken",
    }  # fmt: skip


def test_redact(faops: Faops, having, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HOME", "/home/mallory")
    monkeypatch.setenv("USERPROFILE", "/home/mallory")
    monkeypatch.setenv("LOGNAME", "mallory")
    monkeypatch.setattr("platform.node", lambda: "lair.example.org")
    told = warn("/home/mallory/x on lair.example.org", "of mallory, not mallory2", fix="rm /home/mallory/x")
    having(Check("a.b", "a", "tells", lambda: told))
    (row,) = document(faops("doctor", "--redact", "--json"))["findings"]
    assert row["summary"] == "~/x on <host>"
    assert row["details"] == ["of <user>, not mallory2"]
    assert row["fix"] == "rm ~/x"
    text = faops("doctor", "--redact").stdout
    assert "lair" not in text
    assert "/home/mallory" not in text
    assert "mallory2" in text
    assert "/home/mallory/x" in faops("doctor").stdout


def test_real_process_finds_this_machine_in_order() -> None:
    """Whatever machine runs this: no check fails or crashes, and every kernel that runs here was tried."""
    done = python("-m", "faops_cli", "doctor", "--json")
    found = json.loads(done.stdout)
    bad = [row for row in found["findings"] if row["status"] in ("fail", "crashed")]
    assert bad == []
    assert done.returncode == 0
    assert done.stderr == ""
    tried = [row for row in found["findings"] if row["group"] == "kernels" and row["status"] == "ok"]
    assert len(tried) > 3
    assert not os.path.exists(os.environ["FAOPS_CACHE_DIR"])


def test_report(faops: Faops, having, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Redacted unless it is asked not to be; the exit code is the usual one."""
    monkeypatch.setenv("HOME", "/home/mallory")
    monkeypatch.setenv("USERPROFILE", "/home/mallory")
    having(Check("a.b", "a", "tells", lambda: fail("in /home/mallory/x", fix="rm it")))
    result = faops("doctor", "--report")
    assert result.exit_code == 1
    assert result.stdout.startswith("<details>\n<summary>faops ")
    assert "x  a.b: in ~/x" in result.stdout
    assert "mallory" not in result.stdout
    assert "in /home/mallory/x" in faops("doctor", "--report", "--no-redact").stdout
    refused(faops("doctor", "--report", "--json"), "--report", "--json", code=2)


def test_what_is_skipped_for_one_reason_takes_one_line(faops: Faops, having) -> None:  # type: ignore[no-untyped-def]
    same = [Check(f"one.absent{number}", "one", "", lambda: skipped("nothing here")) for number in (1, 2)]
    other = Check("one.elsewhere", "one", "", lambda: skipped("nothing there"))
    having(same[0], FINE, other, same[1], Check("one.fine2", "one", "", FINE.run))
    assert faops("doctor").stdout.splitlines()[3:-2] == [
        "  -   one.absent1, one.absent2: nothing here",
        "  ok  one.fine: all is well",
        "  -   one.elsewhere: nothing there",
        "  ok  one.fine2: all is well",
    ]
    assert "  -   one.absent2: nothing here" in faops("doctor", "-v").stdout.splitlines()


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        ("OSError('libcublas.so.12: cannot open shared object file')", "fix: pip install --upgrade --force-reinstall"),
        ("ImportError('libhccl.so: cannot open', name='torch')", "fix: pip install --upgrade --force-reinstall torch"),
    ],
)
def test_a_torch_that_cannot_be_imported_is_told_with_what_mends_it(tmp_path: Path, error: str, mend: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {error}\n")
    done = python("-m", "faops_cli", "doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "PyTorch cannot be imported" in done.stderr and mend in done.stderr
    assert "Traceback" not in done.stderr


def test_the_commands_of_faops_in_fixes_exist() -> None:
    """Read from the source, as most fixes show only on a machine that is broken in their way."""
    source = "".join(path.read_text() for path in Path(doctor.__file__).parent.rglob("*.py"))
    found = set(re.findall(r"faops ((?:cache )?[a-z]+(?: --[a-z-]+)+)", source))
    assert len(found) >= 4
    for line in found:
        words = line.split()
        command: click.Command | None = command_line
        while not words[0].startswith("--"):
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command_line), words.pop(0))
        assert command is not None, line
        assert set(words) <= {option for parameter in command.params for option in parameter.opts}, line
