"""Where the daemon's files lie, and that nobody else can touch them.

The state (queue, log, lock) is kept between boots, one directory a host, since home directories are shared between
hosts. The runtime directory (socket, token) is the user's alone: whoever could write there could put a socket of his
own in its place.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import warnings
from pathlib import Path

from faops import settings
from faops.errors import DaemonError

SOCKET_BYTES = 107  # of a Unix socket's path: struct sockaddr_un holds 108 with the closing zero; 104 on a Mac
PRIVATE = 0o700
_NOBODY = 65534  # in a container with users of its own, root outside owns what is seen as nobody's


def state_directory(create: bool = True) -> Path:
    """Directory of queue, log and lock of this host's daemon, made (0700) unless ``create`` is false.

    Raises DaemonError where it cannot be made or is another user's, and SettingsError.
    """
    directory = _root("state_dir") / "daemon" / _host_name()
    if create:
        _make(directory)
    _check_owned(directory)
    return directory


def runtime_directory(create: bool = True) -> Path:
    """Directory of the socket and the token, made (0700) unless ``create`` is false.

    Raises DaemonError where it cannot be made, is a symbolic link or another user's, is open to others or lies where
    others could replace it, and SettingsError.
    """
    directory = _root("runtime_dir")
    _check_ancestors(directory)
    if create:
        _make(directory)
    _check_owned(directory)
    _check_closed(directory)
    return directory


def socket_path(create: bool = True) -> Path:
    """Path of the socket on which the daemon answers. Raises DaemonError also if it is too long."""
    path = runtime_directory(create) / "daemon.sock"
    size = len(os.fsencode(path))
    if size > SOCKET_BYTES:
        raise DaemonError(
            f"{path}: a socket's path may have {SOCKET_BYTES} bytes, and this one has {size}; "
            f"set FAOPS_RUNTIME_DIR to a shorter directory"
        )
    return path


def token_path(create: bool = True) -> Path:
    """Path of the token that requests over TCP must bring."""
    return runtime_directory(create) / "token"


def queue_path(create: bool = True) -> Path:
    """Path of the queue."""
    return state_directory(create) / "queue.sqlite"


def log_path(create: bool = True) -> Path:
    """Path of the log that is written now; older ones have .1, .2, ... after it."""
    return state_directory(create) / "daemon.log"


def lock_path(create: bool = True) -> Path:
    """Path of the lock that a running daemon holds."""
    return state_directory(create) / "daemon.lock"


# ------------------------------------------------------------------------------------------------------ which they are


def _root(name: str) -> Path:
    """The directory that the setting names, else the user's for such things."""
    if named := str(settings.get(name)):
        return _expanded(named, name).absolute()
    import platformdirs

    find = platformdirs.user_state_dir if name == "state_dir" else platformdirs.user_runtime_dir
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is missing wherever no session was opened: that is usual
            return Path(find("faops", appauthor=False))
    except OSError as error:  # its own checks of what it falls back to
        raise DaemonError(
            f"there is no {name.partition('_')[0]} directory: {_why(error)}; set {_variable(name)}"
        ) from None


def _expanded(named: str, name: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise DaemonError(f"{name}: got {named!r}, expected a directory ({error})") from None


def _variable(name: str) -> str:
    return f"FAOPS_{name.upper()}"


def _host_name() -> str:
    """The host's name as that of a directory."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())
    return name if name.strip(".") else "localhost"


# ------------------------------------------------------------------------------------------------ whether they are safe


def _make(directory: Path) -> None:
    """Make a directory and those above it that are missing, all closed to others whatever the umask is."""
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        for path in reversed(missing):
            try:
                path.mkdir(PRIVATE)
            except FileExistsError:  # made by another process meanwhile
                continue
            path.chmod(PRIVATE)
    except OSError as error:
        raise DaemonError(f"{directory} cannot be made: {_why(error)}") from None


def _check_owned(directory: Path) -> None:
    """Refuse what is no directory of ours; one that is not there passes."""
    status = _status(directory)
    if status is None:
        return
    if stat.S_ISLNK(status.st_mode):
        raise DaemonError(f"{directory} is a symbolic link, expected a directory; name the directory itself")
    if not stat.S_ISDIR(status.st_mode):
        raise DaemonError(f"{directory} is in the way: it is no directory")
    if status.st_uid != os.geteuid():
        raise DaemonError(f"{directory} belongs to {_user(status.st_uid)}, expected {_user(os.geteuid())}")


def _check_closed(directory: Path) -> None:
    status = _status(directory)
    if status is not None and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise DaemonError(f"{directory} is open to others (mode {mode:04o}); close it with: chmod 700 {directory}")


def _check_ancestors(directory: Path) -> None:
    """Refuse a directory that others could replace, because one above it is theirs or anybody's to write."""
    for path in (directory.parent, directory.parent.resolve()):
        for ancestor in (path, *path.parents):
            if status := _status(ancestor):
                _check_ancestor(directory, ancestor, status)


def _check_ancestor(directory: Path, ancestor: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid(), _NOBODY):
        raise DaemonError(
            f"{directory} would not be safe: {ancestor} belongs to {_user(status.st_uid)}; "
            f"set FAOPS_RUNTIME_DIR to a directory of yours"
        )
    anybodys = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if anybodys and not stat.S_ISLNK(status.st_mode):
        raise DaemonError(
            f"{directory} would not be safe: anybody may write to {ancestor}; "
            f"set FAOPS_RUNTIME_DIR to a directory of yours"
        )


def _status(path: Path) -> os.stat_result | None:
    """What is at a path, links not followed; None where nothing is."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DaemonError(f"{path} cannot be looked at: {_why(error)}") from None


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
