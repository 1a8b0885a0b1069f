"""A process that answers requests, and may crash or hang while it does: the side that asks.

Requests and answers are JSON, one a line, on a pair of sockets of their own, since kernels may print. The process is
its own session, so that Ctrl-C in a terminal reaches the asking side only, and is ended with all it has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from faops.autotune import effort
from faops.errors import CrashedError, HangError, TuningError
from faops.processes import how_it_ended, with_last_words

AVAILABLE = os.name == "posix"  # elsewhere no descriptor can be passed on

# What the process runs. sys.path is set first, so that no file of the current folder hides a package.
PROGRAM = (
    "import sys; descriptor, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; "
    "from faops.autotune.measurement.worker import main; main(descriptor)"
)
POLL_SECONDS = 1.0  # how often a process is looked after that may have ended without closing its socket
OUTPUT_BYTES = 1 << 16  # kept of what it prints
ANSWER_BYTES = 1 << 24  # no answer is longer
READ_BYTES = 1 << 16
READS = 16  # in a row, from a process that prints faster than it is read

Request = dict[str, Any]
Answer = dict[str, Any]


C = TypeVar("C", bound="Closable")


class Closable(ABC):
    """A context manager that ends what it has started, however its block is left."""

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End it."""


class Child:
    """One such process, with at most one request under way.

    It runs ``program``, Python text that finds the number of its socket and this process's sys.path in sys.argv.
    Raises TuningError where no process can be started.
    """

    def __init__(self, program: str = PROGRAM) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", program, str(theirs.fileno()), *map(str, sys.path)]
        with theirs:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise TuningError(f"no process can be started to measure in: {error}") from None
        assert self.process.stdout is not None
        self._printed = self.process.stdout
        self._silent = False  # it has closed what it prints to
        os.set_blocking(self._printed.fileno(), False)
        ours.setblocking(False)
        self._socket = ours
        self._received = b""
        self._output = b""
        self._serial = 0
        self._limit = 0.0
        self._deadline = 0.0
        self.busy = False  # a request is under way
        self.closed = False

    def ask(self, request: Request, limit: float) -> None:
        """Begin a request that may take ``limit`` seconds. The answer comes from :meth:`take`."""
        self._serial += 1
        self._limit, self._deadline = limit, time.monotonic() + limit
        self.busy = True
        line = json.dumps({"serial": self._serial, "limit": limit, **request}).encode() + b"\n"
        with contextlib.suppress(OSError):  # it has ended: take() tells how
            self._socket.sendall(line)

    def take(self) -> Answer | None:
        """The answer to the request under way, None while there is none.

        Raises CrashedError or HangError when there will be none; the process is gone then.
        """
        ended = self.process.poll() is not None  # before reading: it may have answered and ended
        self._read_output()
        line, cut_off = self._read_line()
        if line is not None:
            self.busy = False
            return self._understood(line)
        if ended or cut_off:
            raise self._crashed()
        if time.monotonic() >= self._deadline:
            raise self._hung()
        return None

    def wait(self) -> Answer:
        """The answer to the request under way. Raises as :meth:`take` does; what ends the wait ends the process."""
        try:
            while (answer := self.take()) is None:
                wait([self])
        except BaseException:
            self.kill()
            raise
        return answer

    def request(self, request: Request, limit: float) -> Answer:
        """Ask and wait."""
        self.ask(request, limit)
        return self.wait()

    @property
    def gone(self) -> bool:
        """Whether the process has ended. What it has started is ended then, too."""
        if not self.closed and self.process.poll() is not None:
            self.kill()
        return self.closed

    def close(self) -> None:
        """End the process, at once if a request is under way."""
        if not self.busy and not self.closed:
            self._socket.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(effort.EXIT_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it has started, now."""
        if self.closed:
            return
        self.closed, self.busy = True, False
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._read_output()
        self._socket.close()
        self._printed.close()

    def seconds_left(self) -> float:
        """Until the limit of the request under way."""
        return max(0.0, self._deadline - time.monotonic())

    def sources(self) -> list[int]:
        """The descriptors on which something may come."""
        return [self._socket.fileno(), *([] if self._silent else [self._printed.fileno()])]

    # ------------------------------------------------------------------------------------------ reading

    def _read_output(self) -> None:
        for _ in range(READS):
            data = self._read(self._printed.fileno())
            if not data:
                self._silent = data is not None
                break
            self._output = (self._output + data)[-OUTPUT_BYTES:]

    def _read_line(self) -> tuple[bytes | None, bool]:
        """The next line that was sent, if it is whole; and whether no more will come."""
        while b"\n" not in self._received:
            data = self._read(self._socket.fileno())
            if data is None:
                return None, False
            self._received += data
            if not data:
                return None, True
            if len(self._received) > ANSWER_BYTES:
                return self._received, False  # which nobody will understand
        line, self._received = self._received.split(b"\n", 1)
        return line, False

    @staticmethod
    def _read(descriptor: int) -> bytes | None:
        """What is there now: b"" at the end, None for nothing yet."""
        try:
            return os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:  # reset by the other side
            return b""

    def _understood(self, line: bytes) -> Answer:
        try:
            answer = json.loads(line)
            if answer["serial"] == self._serial:
                return dict(answer)
        except (ValueError, KeyError, TypeError):
            pass
        self.kill()
        raise CrashedError(f"it answered with something else than an answer: {line[:80]!r}", self._text())

    # ------------------------------------------------------------------------------------------ how it ended

    def _crashed(self) -> CrashedError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(effort.EXIT_SECONDS)
        code = self.process.poll()
        self.kill()
        return CrashedError(with_last_words(how_it_ended(code), self._text()), self._text())

    def _hung(self) -> HangError:
        self.kill()
        message = f"no answer within {self._limit:.0f} s; the process was ended"
        return HangError(with_last_words(message, self._text()), self._text())

    def _text(self) -> str:
        return self._output.decode(errors="replace")


def wait(children: Sequence[Child]) -> None:
    """Until one of ``children`` has sent something, or has reached its limit, or POLL_SECONDS have passed."""
    timeout = min([POLL_SECONDS, *(child.seconds_left() for child in children)])
    with selectors.DefaultSelector() as selector:
        for child in children:
            for descriptor in child.sources():
                selector.register(descriptor, selectors.EVENT_READ)
        selector.select(timeout)
