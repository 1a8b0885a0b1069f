"""`faops daemon logs`: the last lines, and those that come."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from faops.daemon import paths
from tests.cli.conftest import Faops
from tests.cli.support import document, refused


def line(number: int) -> str:
    written = {"time": "2026-01-31T12:00:00.000Z", "level": "info", "part": "lane", "event": "job_done"}
    return json.dumps({**written, "message": f"number {number}", "job": number}) + "\n"


@pytest.fixture
def log() -> Path:
    path = paths.log_path()
    path.write_text("".join(map(line, range(60))))
    return path


def test_the_last_lines(faops: Faops, log: Path) -> None:
    done = faops("daemon", "logs", "-n", "2")
    assert done.exit_code == 0, done.output
    assert [text.split("job=")[1] for text in done.stdout.splitlines()] == ["58", "59"]
    assert "number 59" in done.stdout and '"' not in done.stdout
    assert len(faops("daemon", "logs").stdout.splitlines()) == 50
    assert faops("daemon", "logs", "-n", "0").stdout == ""


def test_as_json(faops: Faops, log: Path) -> None:
    with log.open("a") as file:
        file.write("half a li\n")
    shown = document(faops("daemon", "logs", "-n", "2", "--json"))
    assert shown["path"] == str(log)
    assert shown["lines"][0]["message"] == "number 59" and shown["lines"][1] == {"message": "half a li"}


def test_no_log(faops: Faops) -> None:
    done = faops("daemon", "logs")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no log yet" in done.stderr and "faops daemon start" in done.stderr
    assert document(faops("daemon", "logs", "--json"))["lines"] == []
    assert not paths.log_path(create=False).parent.exists()


def test_an_unreadable_log(faops: Faops) -> None:
    paths.log_path().mkdir()
    refused(faops("daemon", "logs"), "daemon.log cannot be read", "directory")


@pytest.mark.parametrize("as_json", [False, True])
def test_following_until_ctrl_c(log: Path, as_json: bool) -> None:
    arguments = ["daemon", "logs", "-f", "-n", "1", *(["--json"] if as_json else [])]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from faops_cli.main import command_line\n"
        f"command_line.main({arguments}, prog_name='faops')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    with log.open("a") as file:
        file.write(line(60))
    second = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "\ninterrupted\n"
    if as_json:
        assert [json.loads(text)["job"] for text in (first, second)] == [59, 60]
    else:
        assert "number 59" in first and "number 60" in second
