"""The file of the log: rotation, and what the disk may do."""

from __future__ import annotations

import json
import logging
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import log
from faops.daemon.log import file as log_file
from faops.daemon.log.file import FILES, FileHandler, numbered
from faops.daemon.log.format import JsonFormatter

Lines = Callable[[], list[dict[str, Any]]]
logger = log.get("part")


class Plain(logging.Formatter):
    """The message and nothing else."""


def handler_of(path: Path, largest: int) -> FileHandler:
    return FileHandler(path, Plain("%(message)s"), largest)


def write(handler: FileHandler, *messages: str) -> None:
    for message in messages:
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, message, None, None))


def test_the_file_is_the_users_alone(path: Path) -> None:
    path.touch(0o644)
    path.chmod(0o644)
    log.setup(path)
    logger.info("event")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_would_get_too_large_is_rotated(path: Path) -> None:
    handler = handler_of(path, largest=10)
    write(handler, "aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff", "gggg")
    assert [numbered(path, number).read_text() for number in range(FILES)] == [
        "gggg\n", "eeee\nffff\n", "cccc\ndddd\n",
    ]  # fmt: skip
    assert len(list(path.parent.glob("daemon.log*"))) == FILES
    assert all(stat.S_IMODE(numbered(path, number).stat().st_mode) == 0o600 for number in range(FILES))
    assert handler.dropped == 0


def test_a_line_that_is_larger_than_a_file_is_written(path: Path) -> None:
    handler = handler_of(path, largest=4)
    write(handler, "aaaaaaaa", "bbbbbbbb")
    assert (path.read_text(), numbered(path, 1).read_text()) == ("bbbbbbbb\n", "aaaaaaaa\n")
    assert not numbered(path, 2).exists(), "an empty file is not worth keeping"


def test_an_existing_file_is_gone_on_with(path: Path) -> None:
    path.write_text("before\n")
    write(handler_of(path, largest=100), "after")
    assert path.read_text() == "before\nafter\n"


def test_a_full_disk_costs_lines_and_leaves_no_half_ones(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, real = handler_of(path, largest=1000), os.write
    write(handler, "one")
    with monkeypatch.context() as patch:
        patch.setattr(log_file.os, "write", lambda descriptor, line: real(descriptor, line[:2]))
        write(handler, "two", "three")
    assert path.read_text() == "one\n"
    with monkeypatch.context() as patch:
        patch.setattr(log_file.os, "write", lambda descriptor, line: real(10**6, line))
        write(handler, "four")
    assert handler.dropped == 3
    write(handler, "five", "six")
    assert path.read_text() == "one\n3 lines could not be written\nfive\nsix\n"
    assert handler.dropped == 3


def test_that_lines_are_missing_is_told_only_before_one_that_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the line that tells of them, but not for the next one."""
    handler, real = handler_of(path, largest=1000), os.write
    with monkeypatch.context() as patch:
        patch.setattr(log_file.os, "write", lambda descriptor, line: real(descriptor, line[:30]))
        write(handler, "lost" * 10, "lost too")
    write(handler, "kept")
    assert path.read_text() == "2 lines could not be written\nkept\n"


def test_a_real_limit_of_the_disk_is_survived_without_a_traceback(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from faops.daemon import log\n"
        "log.setup(Path(sys.argv[1])); logger = log.get('part')\n"
        "for number in range(40): logger.info('event', 'x' * 100)\n"
        "print(log.dropped())"
    )
    limits = (2000, 2000)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    whole = path.read_text().splitlines()
    assert all(json.loads(line)["event"] == "event" for line in whole)
    assert int(done.stdout) == 40 - len(whole) > 0


@pytest.mark.parametrize("obstacle", ["directory", "fifo", "link", "absent"])
def test_what_is_in_the_way_costs_lines_only(obstacle: str, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "daemon.log"
    if obstacle != "absent":
        path.parent.mkdir()
    if obstacle == "directory":
        path.mkdir()
    elif obstacle == "fifo":
        os.mkfifo(path)
    elif obstacle == "link":
        path.symlink_to(tmp_path / "elsewhere")
    log.setup(path)
    logger.info("event")
    assert log.dropped() == 1
    assert not (tmp_path / "elsewhere").exists()


def test_a_fifo_with_a_reader_is_no_log(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        handler = handler_of(path, largest=100)
        write(handler, "lost")
        assert handler.dropped == 1
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


@pytest.mark.parametrize("moved", [True, False])
def test_a_file_that_is_moved_or_removed_is_made_again(moved: bool, path: Path, tmp_path: Path) -> None:
    handler = handler_of(path, largest=100)
    write(handler, "before")
    path.rename(tmp_path / "moved") if moved else path.unlink()
    write(handler, "after")
    assert path.read_text() == "after\n"
    if moved:
        assert (tmp_path / "moved").read_text() == "before\n"


def test_files_that_cannot_be_rotated_do_not_grow(path: Path) -> None:
    for number in (1, 2):
        (numbered(path, number) / "something").mkdir(parents=True)
    handler = handler_of(path, largest=10)
    write(handler, "aaaa", "bbbb", "cccc")
    assert path.read_text() == "aaaa\nbbbb\n"
    assert handler.dropped == 1


def test_a_descriptor_that_went_bad_costs_one_line(path: Path) -> None:
    handler = handler_of(path, largest=100)
    write(handler, "before")
    assert handler._descriptor is not None
    os.close(handler._descriptor)
    write(handler, "lost", "after")
    assert path.read_text() == "before\n1 lines could not be written\nafter\n"


def test_closing_gives_the_descriptor_back(path: Path) -> None:
    handler = handler_of(path, largest=10)
    write(handler, "aaaa")
    before = len(os.listdir("/proc/self/fd"))
    handler.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_broken_record_is_dropped(path: Path, lines: Lines) -> None:
    handler = FileHandler(path, JsonFormatter())
    broken = logging.LogRecord("x", logging.INFO, "", 0, "m", None, None)
    broken.fields = 7
    handler.handle(broken)
    assert handler.dropped == 1
    write(handler, "whole")
    assert [line["event"] for line in lines()] == ["log_dropped", "foreign"]
