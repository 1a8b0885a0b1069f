"""The daemon's log: one JSON object a line in a file that is rotated, and lines for people on standard error.

    logger = log.get("lane")
    logger.info("job_done", "1.34x faster", job=7)

Logging never raises and never blocks for long: what the disk does not take is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Literal

from faops.daemon.log.file import FileHandler
from faops.daemon.log.format import JsonFormatter, TextFormatter, render
from faops.daemon.log.reading import follow, tail
from faops.errors import ArgumentError

__all__ = ["LEVELS", "Logger", "dropped", "follow", "get", "render", "setup", "tail"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
ROOT = "faops.daemon"
FOREIGN = ("uvicorn", "asyncio", "py.warnings")  # loggers of what the daemon is built on; theirs from warnings up

logging.getLogger(ROOT).addHandler(logging.NullHandler())  # silent until setup()


class Logger:
    """Logs the events of one part: ``event`` names what happened, ``message`` says it, ``fields`` tell more."""

    def __init__(self, part: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{part}")

    def debug(self, event: str, message: str = "", /, **fields: Any) -> None:
        """What helps to find a defect."""
        self._log(logging.DEBUG, event, message, fields)

    def info(self, event: str, message: str = "", /, **fields: Any) -> None:
        """What a user may like to know."""
        self._log(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str = "", /, **fields: Any) -> None:
        """What a user should know; the daemon copes."""
        self._log(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str = "", /, **fields: Any) -> None:
        """What a user has to mend."""
        self._log(logging.ERROR, event, message, fields)

    def exception(self, event: str, message: str = "", /, *, error: BaseException, **fields: Any) -> None:
        """A defect, with its traceback."""
        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        told = {"error": f"{type(error).__name__}: {_text(error)}", "traceback": lines, **fields}
        self._log(logging.ERROR, event, message, told)

    def _log(self, level: int, event: str, message: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"event": event, "fields": fields})


def get(part: str) -> Logger:
    """The logger of a part of the daemon, such as "lane"."""
    return Logger(part)


def setup(path: Path | None = None, level: str = "info", stderr: bool | Literal["json"] = False) -> None:
    """Log to the file ``path`` and to standard error, for people or as JSON, from ``level`` up; replaces what was.

    Without either, nothing is logged. Raises ArgumentError for a level that is none of LEVELS. A file that cannot be
    written raises nothing: what goes to it is dropped.
    """
    if level not in LEVELS:
        raise ArgumentError("level", repr(level), f"one of {', '.join(LEVELS)}")
    handlers: list[logging.Handler] = []
    if path is not None:
        handlers.append(FileHandler(path, JsonFormatter()))
    if stderr:
        handlers.append(_StderrHandler(as_json=stderr == "json"))
    _install(ROOT, LEVELS[level], handlers)
    for name in FOREIGN:
        _install(name, max(LEVELS[level], logging.WARNING), handlers)
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(bool(handlers))


def dropped() -> int:
    """How many lines could not be written to the file since setup()."""
    handlers = logging.getLogger(ROOT).handlers
    return sum(handler.dropped for handler in handlers if isinstance(handler, FileHandler))


def _install(name: str, level: int, handlers: list[logging.Handler]) -> None:
    logger = logging.getLogger(name)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers or [logging.NullHandler()]:
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error; that it is closed or full is no reason to stumble."""

    def __init__(self, as_json: bool) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonFormatter() if as_json else TextFormatter(journal=_is_journal(self.stream)))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: there is nowhere to tell it."""


def _is_journal(stream: Any) -> bool:
    """Whether systemd's journal reads a stream: JOURNAL_STREAM holds the device and inode of the pipe it made."""
    device, separator, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not separator:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no text)"
