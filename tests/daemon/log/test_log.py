"""What is logged, where, and from which level up."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import log
from faops.errors import ArgumentError

Lines = Callable[[], list[dict[str, Any]]]
logger = log.get("part")


class Stream(io.StringIO):
    """Standard error that is the file of a descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor


def test_a_line_tells_time_level_event_message_and_fields(path: Path, lines: Lines) -> None:
    log.setup(path)
    before = datetime.now(timezone.utc)
    logger.info("job_done", "1.34x faster", job=7, device="cpu", share=0.5, none=None)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    moment = datetime.fromisoformat(line.pop("time").replace("Z", "+00:00"))
    assert abs((moment - before).total_seconds()) < 30
    assert line == {
        "level": "info", "part": "part", "event": "job_done", "message": "1.34x faster",
        "job": 7, "device": "cpu", "share": 0.5, "none": None,
    }  # fmt: skip


@pytest.mark.parametrize("level", list(log.LEVELS))
def test_what_is_below_the_level_is_left_out(level: str, path: Path, lines: Lines) -> None:
    log.setup(path, level)
    for name in log.LEVELS:
        getattr(logger, name)(name)
    assert [line["level"] for line in lines()] == list(log.LEVELS)[list(log.LEVELS).index(level) :]


def test_an_unknown_level_is_refused(path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"level: got 'loud', expected one of debug, info, warning, error"):
        log.setup(path, "loud")


def test_fields_keep_away_from_the_lines_own(path: Path, lines: Lines) -> None:
    log.setup(path)
    logger.info("begin", "said", time=1, level=2, event=3, message=4, part=5, msg=6, args=7, name=8, error="e")
    (line,) = lines()
    assert (line["level"], line["event"], line["message"]) == ("info", "begin", "said")
    assert (line["time_"], line["level_"], line["event_"], line["message_"], line["part"]) == (1, 2, 3, 4, 5)
    assert (line["msg"], line["args"], line["name"], line["error"]) == (6, 7, 8, "e")


def test_a_message_is_no_format(path: Path, lines: Lines) -> None:
    log.setup(path)
    logger.info("progress", "100 % of %s and {x}")
    assert lines()[0]["message"] == "100 % of %s and {x}"


def test_a_defect_is_logged_with_its_traceback(path: Path, lines: Lines) -> None:
    log.setup(path)
    try:
        [].pop()
    except IndexError as error:
        logger.exception("defect", "a defect of faops", error=error, device="cpu")
    (line,) = lines()
    assert (line["level"], line["error"], line["device"]) == ("error", "IndexError: pop from empty list", "cpu")
    assert "Traceback" in line["traceback"] and "[].pop()" in line["traceback"]


def test_an_error_without_a_text_is_logged(path: Path, lines: Lines) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    log.setup(path)
    logger.exception("defect", error=MuteError())
    assert lines()[0]["error"] == "MuteError: (no text)"


def test_a_new_setup_replaces_the_old_one(path: Path, lines: Lines, tmp_path: Path) -> None:
    log.setup(tmp_path / "other.log")
    log.setup(path)
    log.setup(path)
    logger.info("once")
    assert len(lines()) == 1
    assert not (tmp_path / "other.log").exists()


def test_without_a_setup_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup()
    logger.error("nobody_listens")
    assert capfd.readouterr() == ("", "")


def test_other_peoples_loggers_write_into_the_same(path: Path, lines: Lines) -> None:
    log.setup(path)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP %s received.", "request")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.access").error("GET / 200")
    logging.getLogger("asyncio").error("a task was lost")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old API", DeprecationWarning, stacklevel=1)
    told = [(line["part"], line["level"], line["event"]) for line in lines()]
    assert told == [
        ("uvicorn.error", "warning", "foreign"), ("asyncio", "error", "foreign"), ("py.warnings", "warning", "foreign"),
    ]  # fmt: skip
    assert lines()[0]["message"] == "Invalid HTTP request received."


def test_a_foreign_record_that_is_broken_is_logged(path: Path, lines: Lines) -> None:
    log.setup(path)
    logging.getLogger("asyncio").error("%d of %d", "x")
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("asyncio").exception("lost")
    first, second = lines()
    assert first["message"] == "%d of %d"
    assert "KeyError" in second["traceback"]


def test_people_read_text_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup(stderr=True)
    logger.warning("gate_closed", "2 cores are busy", device="cpu", words="a b")
    text = sys.stderr.getvalue()
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  WARNING  gate_closed: 2 cores are busy  device=cpu words="a b"\n', text
    )


def test_the_journal_gets_priorities_and_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(tmp_path / "journal", "w") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", Stream(file.fileno()))
        log.setup(level="debug", stderr=True)
        for level in log.LEVELS:
            getattr(logger, level)("event", "said")
        try:
            raise KeyError("k")
        except KeyError as error:
            logger.exception("defect", error=error)
        lines = sys.stderr.getvalue().splitlines()
    assert lines[:4] == [f"<{priority}>event: said" for priority in (7, 6, 4, 3)]
    assert len(lines) > 5 and all(line.startswith("<3>") for line in lines[4:]), "each line is an entry of its own"


@pytest.mark.parametrize("stream", ["", "8:1", "nonsense", "8", ":"])
def test_what_is_not_the_journals_stream_is_a_terminal(
    stream: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "terminal", "w") as file:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        monkeypatch.setattr(sys, "stderr", Stream(file.fileno()))
        log.setup(stderr=True)
        logger.info("event")
        assert sys.stderr.getvalue().endswith("  INFO     event\n")


def test_programs_read_json_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.setup(stderr="json")
    logger.info("event", job=1)
    assert json.loads(sys.stderr.getvalue())["job"] == 1


def test_a_closed_standard_error_is_survived(
    path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    log.setup(path, stderr=True)
    logger.info("event")
    assert len(lines()) == 1
    assert capfd.readouterr().err == ""


def test_without_a_standard_error_the_file_is_written(
    path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    log.setup(path, stderr=True)
    logger.info("event")
    assert len(lines()) == 1
