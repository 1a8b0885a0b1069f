"""Units of the user's systemd: faops.service runs the daemon, faops.socket holds its socket while it restarts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from faops import settings
from faops._version import __version__
from faops.daemon import paths
from faops.daemon.environment import for_units
from faops.daemon.start import COMMAND
from faops.errors import DaemonError
from faops.files import read_whole, write_whole

State = Literal["missing", "current", "outdated", "edited"]

_ENVIRONMENT = "Environment="
_BARE = re.compile(r"[A-Za-z0-9_./=:@,+-]+")  # words that need no quotes

_SERVICE = """\
[Unit]
Description=faops daemon: tunes attention kernels while devices are idle
Wants=faops.socket
After=faops.socket
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
{environment}ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=5
# It ends itself within 10 s of SIGTERM, and its children with it.
KillMode=mixed
TimeoutStartSec=60
TimeoutStopSec=20
WatchdogSec=60
# A child that the kernel ends for its memory is a failed job, no reason to end the daemon.
OOMPolicy=continue
Nice=10
CPUWeight=20
{sandbox}
[Install]
WantedBy=default.target
Also=faops.socket
"""

# No PrivateDevices, which hides GPUs; no MemoryDenyWriteExecute, since kernels are compiled; no UMask, since the cache
# may be shared; nothing that hides other processes or directories, since the gate looks whether others use a device.
_SANDBOX = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""
_SETUID_HELPER = "nvidia-modprobe"  # the NVIDIA driver has it load modules and make device files, as root

_SOCKET = """\
[Unit]
Description=faops daemon: socket

[Socket]
ListenStream={path}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


@dataclass(frozen=True)
class UnitFile:
    """A unit on disk. ``state``: missing; current; outdated: as faops wrote it for another Python or another version;
    edited by somebody. ``written`` says whether install() has just written it.
    """

    path: Path
    state: State
    written: bool = False


def service_unit() -> str:
    """The text of faops.service for this Python and the settings in this process's environment.

    Raises DaemonError where they cannot be written into a unit.
    """
    lines = [f"{_ENVIRONMENT}{quoted(f'{name}={value}')}\n" for name, value in for_units().items()]
    sandbox = "" if shutil.which(_SETUID_HELPER) else _SANDBOX
    command = _command([sys.executable, *COMMAND])
    return _signed(_SERVICE.format(environment="".join(lines), command=command, sandbox=sandbox))


def socket_unit() -> str:
    """The text of faops.socket. Raises DaemonError where the socket's path cannot be written into a unit."""
    named = settings.get("runtime_dir")
    path = _specifiers(_printable(str(paths.socket_path(create=False)))) if named else "%t/faops/daemon.sock"
    return _signed(_SOCKET.format(path=path))


def unit_directory() -> Path:
    """Where a user's units lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser().absolute() / "systemd" / "user"


def look(directory: Path | None = None) -> list[UnitFile]:
    """The units as they are on disk; that they pass on another environment than this process has does not count.

    Raises DaemonError where one cannot be read.
    """
    return [UnitFile(path, _state(path, text)[0]) for path, text in _units(directory)]


def install(directory: Path | None = None, force: bool = False) -> list[UnitFile]:
    """Write the units that are missing or outdated. `systemctl --user daemon-reload` is the caller's.

    Raises DaemonError where one cannot be written, and where one was edited unless ``force`` overwrites it; then none
    is written.
    """
    units = _units(directory)
    found = {path: _state(path, text) for path, text in units}
    if not force:
        _refuse_edited([path for path, (state, _) in found.items() if state == "edited"])
    with _told("written"):
        for path, text in units:
            if not found[path].same:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, text)
    return [UnitFile(path, "current", written=not found[path].same) for path, _ in units]


def uninstall(directory: Path | None = None, force: bool = False) -> list[Path]:
    """Remove the units and the links by which they are enabled, and return what there was.

    Raises DaemonError as install() does.
    """
    units = look(directory)
    if not force:
        _refuse_edited([unit.path for unit in units if unit.state == "edited"])
    found = [unit.path for unit in units if unit.state != "missing"]
    enabled = [folder / unit.path.name for unit in units for folder in sorted(unit.path.parent.glob("*.wants"))]
    found += [link for link in enabled if link.is_symlink()]
    with _told("removed"):
        for path in found:
            path.unlink(missing_ok=True)
    return found


def quoted(text: str, dollars: bool = False) -> str:
    """One word in a unit, see systemd.syntax(7); ``dollars`` where variables are expanded, as in ExecStart.

    Raises DaemonError for control characters.
    """
    if _BARE.fullmatch(text):
        return text
    escaped = _specifiers(_printable(text)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped.replace("$", "$$") if dollars else escaped}"'


def _command(words: list[str]) -> str:
    """A command line. In the program's own path systemd expands no variables, so that "$$" would stay there."""
    if "$" in words[0]:
        words = ["/usr/bin/env", *words]
    return " ".join(quoted(word, dollars=True) for word in words)


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _printable(text: str) -> str:
    if not text.isprintable():  # nor are bytes that are no UTF-8
        raise DaemonError(f"{text!r} cannot be written into a unit: it has control characters")
    return text


# ------------------------------------------------------------------------------------------------------- files on disk


def _units(directory: Path | None) -> list[tuple[Path, str]]:
    directory = directory or unit_directory()
    return [(directory / "faops.service", service_unit()), (directory / "faops.socket", socket_unit())]


def _signed(body: str) -> str:
    """A unit with a first line by which an edited one is told from one that faops wrote."""
    advice = "`systemctl --user edit` is the way to change it"
    return f"# Written by `faops daemon install` (faops {__version__}, {_digest(body)}); {advice}.\n{body}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


class _Found(NamedTuple):
    state: State
    same: bool  # to the letter as it would be written


def _state(path: Path, text: str) -> _Found:
    try:
        found = read_whole(path)
    except FileNotFoundError:
        return _Found("missing", False)
    except (OSError, ValueError) as error:
        raise DaemonError(f"{path} cannot be read: {error}") from None
    head, _, body = found.partition("\n")
    if f", {_digest(body)})" not in head:
        return _Found("edited", False)
    return _Found("current" if _essence(found) == _essence(text) else "outdated", found == text)


def _essence(text: str) -> list[str]:
    """The lines that do not depend on the shell in which faops runs, nor on its version alone."""
    return [line for line in text.splitlines()[1:] if not line.startswith(_ENVIRONMENT)]


def _refuse_edited(edited: list[Path]) -> None:
    if edited:
        raise DaemonError(f"{edited[0]} was edited; --force does it nevertheless")


@contextlib.contextmanager
def _told(done: str) -> Iterator[None]:
    """Turns an error of the disk into one that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise DaemonError(f"{error.filename or 'a unit'} cannot be {done}: {error.strerror or error}") from None
