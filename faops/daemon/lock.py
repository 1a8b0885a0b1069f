"""One daemon a user and host: who holds the lock is the daemon, and says in a file beside it who it is."""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from faops._version import __version__
from faops.daemon import paths
from faops.errors import DaemonError
from faops.files import read_whole, write_whole

if TYPE_CHECKING:
    import filelock

LOOK_SECONDS = 0.5  # that others may hold the lock to see whether it is free, or the holder take to say who it is
POLL_SECONDS = 0.01
LARGEST = 64 * 1024  # bytes of a holder's file


@dataclass(frozen=True)
class Holder:
    """The daemon that runs. ``since`` is ISO 8601 UTC; ``birth`` tells its process from a later one of the same pid."""

    pid: int
    since: str
    socket: str
    version: str
    birth: str

    def lives(self) -> bool:
        """Whether the process is there still, as far as can be seen from here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return birth(self.pid) == self.birth


class RunningError(DaemonError):
    """A daemon of this user runs on this host already. ``holder`` is None where it does not say who it is."""

    def __init__(self, holder: Holder | None) -> None:
        self.holder = holder
        who = f"pid {holder.pid} since {holder.since}, socket {holder.socket}" if holder else "its pid is not known"
        super().__init__(
            f"a daemon of {_user()} already runs on {socket.gethostname()}: {who}; `faops daemon stop` ends it"
        )


class Instance:
    """The right to be the daemon: held from acquire() to release(), or until the process ends in whatever way."""

    def __init__(self, lock: filelock.BaseFileLock, holder_path: Path) -> None:
        self._lock = lock
        self._holder_path = holder_path

    @classmethod
    def acquire(cls) -> Instance:
        """Become the daemon. Raises RunningError if there is one, and DaemonError where the lock cannot be taken."""
        import filelock

        path = paths.lock_path()
        socket_path = paths.socket_path()
        lock = filelock.FileLock(path, timeout=LOOK_SECONDS, mode=0o600, thread_local=False)
        try:
            lock.acquire(poll_interval=POLL_SECONDS)
        except filelock.Timeout:
            found = _written()
            raise RunningError(found if found and found.lives() else None) from None
        except OSError as error:
            raise DaemonError(f"{path} cannot be locked: {error.strerror or error}") from None
        instance = cls(lock, _holder_path(path))
        try:
            instance._introduce(socket_path)
        except OSError as error:
            instance.release()
            raise DaemonError(f"{instance._holder_path} cannot be written: {error.strerror or error}") from None
        return instance

    def release(self) -> None:
        """Give the right back."""
        with contextlib.suppress(OSError):
            self._holder_path.unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _introduce(self, socket_path: Path) -> None:
        """Say who holds the lock. Raises OSError."""
        pid = os.getpid()
        holder = Holder(pid, _now(), str(socket_path), __version__, birth(pid))
        write_whole(self._holder_path, json.dumps(asdict(holder), indent=1) + "\n")
        self._holder_path.chmod(0o600)


def holder() -> Holder | None:
    """The daemon that runs; None where none does.

    What a killed one has left does not count: only the lock tells. Raises DaemonError where it cannot be told, or where
    one runs that is not to be seen from here.
    """
    deadline = time.monotonic() + LOOK_SECONDS
    while is_locked():
        found = _written()
        if found and found.lives():
            return found
        if time.monotonic() > deadline:
            raise _unseen(found)
        time.sleep(POLL_SECONDS)  # it may be about to say who it is
    return None


def is_locked() -> bool:
    """Whether a daemon holds the lock. Raises DaemonError where that cannot be told."""
    import fcntl

    path = paths.lock_path(create=False)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DaemonError(f"{path} cannot be opened: {error.strerror or error}") from None
    try:
        # Shared, so that those who look do not take each other for a daemon.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        raise DaemonError(f"{path} cannot be locked: {error.strerror or error}") from None
    finally:
        os.close(descriptor)
    return False


def birth(pid: int) -> str:
    """What tells a process from a later one with its pid: the boot and its start in ticks; "" where it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}:{after_name[19]}"  # starttime is field 22 of stat(5), the third is the first after the name


def _written() -> Holder | None:
    """What the holder's file says; None where there is none or not a whole one."""
    try:
        data = json.loads(read_whole(_holder_path(paths.lock_path(create=False)), LARGEST))
        pid, texts = data["pid"], [data[name] for name in ("since", "socket", "version", "birth")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(pid) is not int or not 0 < pid < 2**31 or not all(isinstance(text, str) for text in texts):
        return None
    return Holder(pid, *texts)


def _holder_path(lock: Path) -> Path:
    return lock.with_name("holder.json")


def _unseen(found: Holder | None) -> DaemonError:
    path = paths.lock_path(create=False)
    if found is None:
        return DaemonError(f"a daemon holds {path}, but does not say who it is; `fuser {path}` may tell its pid")
    return DaemonError(
        f"a daemon holds {path}, and its process {found.pid} is not to be seen from here; is it in another container?"
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"user {os.geteuid()}"
