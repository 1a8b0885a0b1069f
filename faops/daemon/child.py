"""The worker as the daemon sees it: a child process that is asked, paused, listened to and ended.

What the worker does is told in :mod:`faops.daemon.worker`. This side imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faops import processes
from faops.daemon.jobs import Job
from faops.errors import DaemonError

# What the process runs. sys.path is set first, so that no file of the current folder hides a package.
PROGRAM = (
    "import sys; descriptor, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; "
    "from faops.daemon.worker import main; main(descriptor)"
)
START_LIMIT_SECONDS = 120.0  # to import torch and every backend
ASK_LIMIT_SECONDS = 300.0
# Between two events of a job. The worker has limits of its own for what it measures, and waits for another process
# that measures on the device (LOCK_TIMEOUT_SECONDS of faops.autotune.effort); this one is for a worker that hangs.
SILENCE_LIMIT_SECONDS = 900.0
SILENCE_LIMIT_CALLS = 500.0  # and as long as this many calls
EXIT_SECONDS = 3.0  # what a process gets to end once it has closed its connection
POLL_SECONDS = 0.01
PAUSED_POLL_SECONDS = 1.0
MEMORY_SECONDS = 2.0  # looking takes milliseconds a process
OUTPUT_BYTES = 1 << 16  # kept of what it prints
LINE_BYTES = 1 << 24  # no answer is longer
READ_BYTES = 1 << 16

Json = dict[str, Any]
OnEvent = Callable[[Json], None]


class WorkerError(DaemonError):
    """The worker was asked for something impossible. ``kind`` is the name of the error's class, such as "PlanError"."""

    def __init__(self, message: str, kind: str = "") -> None:
        self.kind = kind
        super().__init__(message)


class WorkerGoneError(DaemonError):
    """The worker crashed, hung or was ended, and answers no more."""


@dataclass
class _Waiting:
    """A request under way."""

    answer: asyncio.Future[Any]
    on_event: OnEvent | None


class WorkerChild:
    """One worker process, of the event loop in which it was started. Each must be stopped.

    Requests are answered in turn. Whatever ends one that is waited for, such as a cancellation, ends the process.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, printed: int) -> None:
        """Takes over all three. Called by :meth:`start`."""
        self.pid = process.pid
        self._process = process
        self._channel = channel
        self._printed = printed
        self._output = b""
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._serial = 0
        self._heard = time.monotonic()  # when it last said something, or was allowed to go on
        self._paused = False
        self._seen: dict[int, str] = {}  # when each process was born that was met among its descendants
        self._weighed_at, self._memory = -MEMORY_SECONDS, 0
        self._why = ""  # it was ended from here
        self._end: WorkerGoneError | None = None

    @classmethod
    async def start(cls, threads: int = 0, program: str = PROGRAM) -> WorkerChild:
        """A worker that is ready, computing with so many threads on a CPU (0: as many as torch likes).

        It runs ``program``, Python text that finds the number of its socket and this process's sys.path in sys.argv.
        Raises WorkerGoneError where none can be started.
        """
        child = cls(*_launched(program))
        try:
            await child._connect()
            await child._request("prepare", START_LIMIT_SECONDS, threads=threads)
        except BaseException as error:
            await child.stop(0.0)
            if isinstance(error, WorkerError):
                raise WorkerGoneError(f"no worker can be started: {error}") from None
            raise
        return child

    # ------------------------------------------------------------------------------------------ asking

    async def ask(self, do: str, limit: float = ASK_LIMIT_SECONDS, **arguments: Any) -> Any:
        """The answer to a request, which may take ``limit`` seconds: see :mod:`faops.daemon.worker`.

        Raises WorkerError where the worker says what is wrong, and WorkerGoneError where it ends.
        """
        return await self._request(do, limit, **arguments)

    async def tune(self, job: Job, on_event: OnEvent) -> Json:
        """Tune the problem of a job and tell the result; ``on_event`` gets what happens meanwhile. Raises as ask."""
        limit = SILENCE_LIMIT_SECONDS + SILENCE_LIMIT_CALLS * job.task.call_seconds
        return dict(await self._request("tune", limit, on_event, task=job.task.as_dict(), forced=job.forced))

    def pause(self) -> None:
        """Measure nothing more until :meth:`go`; what is being measured is finished."""
        if not self._paused:
            self._paused = True
            self._send({"do": "pause"})

    def go(self) -> None:
        """Go on after :meth:`pause`."""
        if self._paused:
            self._paused, self._heard = False, time.monotonic()
            self._send({"do": "go"})

    # ------------------------------------------------------------------------------------------ looking

    @property
    def gone(self) -> bool:
        """Whether it answers no more."""
        return self._end is not None

    @property
    def output(self) -> str:
        """The last that it and its descendants printed."""
        return self._output.decode(errors="replace")

    def pids(self) -> list[int]:
        """It and its descendants; none once it is gone."""
        if self.gone:
            return []
        found = [self.pid, *processes.descendants(self.pid)]
        self._seen.update((pid, processes.born(pid)) for pid in found if pid not in self._seen)
        return found

    def memory_bytes(self) -> int:
        """Memory that it and its descendants hold, looked at no more often than every MEMORY_SECONDS."""
        if self.gone:
            return 0
        now = time.monotonic()
        if now - self._weighed_at >= MEMORY_SECONDS:
            self._weighed_at, self._memory = now, sum(map(processes.memory_bytes, self.pids()))
        return self._memory

    # ------------------------------------------------------------------------------------------ ending

    async def stop(self, grace: float) -> None:
        """End it and all that it has started: after the measurement under way if that takes no more than ``grace``
        seconds, else in the middle of it."""
        listening = self._listening
        if grace > 0 and listening is not None:
            self._why = self._why or "the worker was told to end"
            self._send({"do": "exit"})
            await asyncio.wait({listening}, timeout=grace)
        self._kill("the worker was ended")
        if listening is not None:
            await asyncio.wait({listening})
        else:
            self._bury()

    def _kill(self, why: str) -> None:
        if not self.gone:
            self._why = self._why or why
            self.pids()
            processes.end_with_descendants(self.pid)

    # ------------------------------------------------------------------------------------------ connection

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._printed, self._read_output)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._channel, limit=LINE_BYTES)
        self._listening = loop.create_task(self._listen(reader))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take what the worker says, until it says no more; then clear up after it."""
        try:
            with contextlib.suppress(OSError):  # reset by the other side
                while line := await reader.readline():
                    self._heard = time.monotonic()
                    self._take(line)
            await self._wait_for_end()
        except ValueError as error:  # a line too long, or no answer
            self._kill(f"the worker said something else than an answer: {error}")
            await self._wait_for_end()
        finally:
            self._bury()

    async def _wait_for_end(self) -> None:
        """Let the process end, and see to it that what it has started does."""
        deadline = time.monotonic() + EXIT_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)
        processes.end(self._left())
        while any(map(processes.alive, self._left())) and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    def _left(self) -> list[int]:
        """Descendants that were met, and may have outlived the process."""
        return [pid for pid, born in self._seen.items() if pid != self.pid and processes.born(pid) == born != ""]

    def _take(self, line: bytes) -> None:
        """Hand what was said to whom it is for. Raises ValueError for what is no answer."""
        said = json.loads(line)
        if not isinstance(said, dict) or not isinstance(said.get("serial"), int):
            raise ValueError(repr(line[:80]))
        waiting = self._waiting.get(said["serial"])
        if waiting is None or waiting.answer.done():
            return
        if "event" in said:
            try:
                if waiting.on_event is not None:
                    waiting.on_event(said["event"])
            except Exception as error:  # the fault of who asked
                waiting.answer.set_exception(error)
        elif "error" in said:
            waiting.answer.set_exception(WorkerError(said["error"]["message"], said["error"]["type"]))
        else:
            waiting.answer.set_result(said.get("value"))

    def _send(self, request: Json) -> None:
        if self._writer is not None and not self.gone:
            self._writer.write(json.dumps(request).encode() + b"\n")

    async def _request(self, do: str, limit: float, on_event: OnEvent | None = None, **arguments: Any) -> Any:
        if self._end is not None:
            raise self._end
        self._serial += 1
        serial, answer = self._serial, asyncio.get_running_loop().create_future()
        self._waiting[serial] = _Waiting(answer, on_event)
        self._heard = time.monotonic()
        try:
            self._send({"serial": serial, "do": do, **arguments})
            while not answer.done():
                await asyncio.wait({answer}, timeout=self._patience(limit))
                if not answer.done() and self._patience(limit) <= 0:
                    self._kill(f"no word of the worker for {limit:.0f} s; it was ended")
                    await asyncio.wait({answer})
            return answer.result()
        except asyncio.CancelledError:
            self._kill("the worker was ended")
            raise
        finally:
            del self._waiting[serial]

    def _patience(self, limit: float) -> float:
        """Seconds to wait for the next word; a pause does not count."""
        if self._paused:
            self._heard = time.monotonic()
            return PAUSED_POLL_SECONDS
        return self._heard + limit - time.monotonic()

    def _read_output(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._printed, READ_BYTES)
            self._output = (self._output + data)[-OUTPUT_BYTES:]
            if not data:
                asyncio.get_running_loop().remove_reader(self._printed)

    # ------------------------------------------------------------------------------------------ how it ended

    def _bury(self) -> None:
        """End what is left of it, close what belongs to it and tell those who wait."""
        if self.gone:
            return
        code = self._process.poll()
        if code is None:
            self._kill("the worker was ended")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
        processes.end(self._left())
        processes.reap(self._left())
        self._close()
        words = self._why or processes.how_it_ended(code)
        self._end = WorkerGoneError(processes.with_last_words(words, self.output))
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(self._end)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._printed, READ_BYTES):
                self._output = (self._output + data)[-OUTPUT_BYTES:]
        asyncio.get_running_loop().remove_reader(self._printed)
        os.close(self._printed)
        if self._writer is not None:
            self._writer.transport.abort()
        self._channel.close()


def _launched(program: str) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """A process that runs ``program``, our end of its connection and where it prints to. Raises WorkerGoneError."""
    ours, theirs = socket.socketpair()
    printed, printing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno()), *map(str, sys.path)],
            stdin=subprocess.DEVNULL,
            stdout=printing,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        os.close(printed)
        raise WorkerGoneError(f"no worker can be started: {error}") from None
    finally:
        theirs.close()
        os.close(printing)
    os.set_blocking(printed, False)
    ours.setblocking(False)
    return process, ours, printed
