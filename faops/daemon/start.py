"""Starting the daemon as a process of its own, and ending it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from faops.daemon import log, paths
from faops.daemon.environment import detached
from faops.daemon.lock import Holder, RunningError, holder
from faops.errors import DaemonError, NotRunningError
from faops.files import read_whole

START_SECONDS = 30.0
STOP_SECONDS = 15.0  # SIGTERM ends the daemon within 10 s
KILL_SECONDS = 10.0
PROBE_SECONDS = 2.0
POLL_SECONDS = 0.05
COMMAND = ("-m", "faops_cli", "daemon", "run")
SHOWN_LINES = 10

_children: list[subprocess.Popen[bytes]] = []  # kept, so that those that ended can be waited for


def start(arguments: Sequence[str] = (), wait_seconds: float = START_SECONDS) -> Holder:
    """Start `faops daemon run` with ``arguments``, detached from this process, and wait until it answers.

    Raises RunningError where a daemon runs already, and DaemonError where the new one ends, with what it said, or does
    not answer in time; then it is left running.
    """
    if found := holder():
        raise RunningError(found)
    output = output_path()
    process = _launch([sys.executable, *COMMAND, *arguments], output)
    deadline = time.monotonic() + wait_seconds
    while process.poll() is None:
        ready, reason = probe()
        found = holder() if ready else None
        if found and found.pid == process.pid:
            return found
        if time.monotonic() > deadline:
            raise DaemonError(
                f"the daemon (pid {process.pid}) is not ready after {wait_seconds:g} s: {reason}; it is left running, "
                f"see `faops daemon logs`"
            )
        time.sleep(POLL_SECONDS)
    if found := holder():  # of two that started at once the other was first
        raise RunningError(found)
    raise DaemonError(f"the daemon has ended with {_ending(process.returncode)}:\n{_last_words(output)}")


def stop(wait_seconds: float = STOP_SECONDS, kill: bool = False) -> Holder:
    """End the daemon: SIGTERM, and with ``kill`` SIGKILL if it still runs after ``wait_seconds``. Returns what ended.

    Raises NotRunningError where none runs, and DaemonError where it cannot be ended.
    """
    found = holder()
    if found is None:
        raise NotRunningError("no daemon runs")
    with _Process(found) as process:
        process.send(signal.SIGTERM)
        if _is_gone(found, wait_seconds):
            return found
        if not kill:
            raise DaemonError(
                f"the daemon (pid {found.pid}) still runs {wait_seconds:g} s after SIGTERM; "
                f"`faops daemon stop --kill` ends it at once: no job is lost, and the running one is begun again"
            )
        process.send(signal.SIGKILL)
    if not _is_gone(found, KILL_SECONDS):
        raise DaemonError(f"the daemon (pid {found.pid}) still runs after SIGKILL: it hangs in the kernel or a driver")
    return found


def probe(timeout: float = PROBE_SECONDS) -> tuple[bool, str]:
    """Whether a daemon answers and is ready for requests, and if not, why."""
    try:
        connection = _UnixConnection(paths.socket_path(create=False), timeout)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            return response.status == 200, _reason(response.read(1 << 16)) or f"/readyz says {response.status}"
    except (OSError, http.client.HTTPException, DaemonError) as error:
        return False, f"no answer on its socket ({error})"


def output_path() -> Path:
    """The file that takes what a daemon started by start() writes to standard error, which is not its log."""
    return paths.state_directory() / "daemon.out"


def is_detached() -> bool:
    """Whether this process was started by start(): its standard error is output_path(), where no log belongs."""
    with contextlib.suppress(OSError, ValueError, DaemonError):
        return os.path.samestat(os.fstat(sys.stderr.fileno()), os.stat(output_path()))
    return False


# ------------------------------------------------------------------------------------------------------------ starting


def _launch(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    """A process of its own session that holds nothing of ours. Raises DaemonError."""
    _children[:] = [child for child in _children if child.poll() is None]
    # Emptied and not made anew: of two that start at once, both are detached by is_detached().
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(output, flags, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd="/",
                env={**detached(), "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DaemonError(f"the daemon cannot be started: {error}") from None
    _children.append(child)
    return child


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _last_words(output: Path) -> str:
    """What a daemon that ended has written, to be shown in an error."""
    with contextlib.suppress(OSError, ValueError):
        if lines := read_whole(output).strip().splitlines():
            return "\n".join(lines[-SHOWN_LINES:])
    with contextlib.suppress(OSError):
        if lines := log.tail(paths.log_path(create=False), SHOWN_LINES):
            return "\n".join(log.render(line) for line in lines)
    return "it has written nothing"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("faops", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _reason(body: bytes) -> str:
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        return str(json.loads(body).get("reason", ""))
    return ""


# ------------------------------------------------------------------------------------------------------------ stopping


class _Process:
    """The daemon's process, and no later one of its pid, to send signals to."""

    def __init__(self, found: Holder) -> None:
        self._found = found
        self._descriptor: int | None = None
        if hasattr(os, "pidfd_open"):  # of Linux
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(found.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended. Raises DaemonError where that is not allowed."""
        if not self._found.lives():  # looked at once the process is held: from then on its pid is nobody else's
            return
        try:
            if self._descriptor is None:
                os.kill(self._found.pid, number)
            else:
                signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise DaemonError(f"the daemon (pid {self._found.pid}) takes no signal from this process") from None

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _is_gone(found: Holder, seconds: float) -> bool:
    """Waits until the daemon no longer holds the lock."""
    deadline = time.monotonic() + seconds
    while True:
        now = holder()
        if now is None or now != found:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
