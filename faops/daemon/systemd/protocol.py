"""sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from faops.errors import DaemonError

FIRST_SOCKET = 3  # the descriptor of the first socket that is passed
LONGEST_VALUE = 1024  # characters of a state


def notify(**states: object) -> bool:
    """Tell systemd ``states`` such as READY=1, STATUS="tuning", RELOADING=1, STOPPING=1, WATCHDOG=1, MAINPID=123.

    Returns whether it was sent: not where nobody asked for it (no NOTIFY_SOCKET), nor where nobody listens any more.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if "RELOADING" in states:  # asked for by services of Type=notify-reload
        states["MONOTONIC_USEC"] = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    message = "\n".join(f"{name}={_value(state)}" for name, state in states.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(message.encode("utf-8", "replace"))
        return True
    return False


def watchdog_seconds() -> float | None:
    """How often at least systemd wants WATCHDOG=1, in seconds; None where it does not. Twice as often is usual."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdecimal() and int(text) else None


def inherited_sockets() -> list[socket.socket]:
    """The listening Unix sockets that systemd passed to this process, [] if it passed none; asked for once.

    Raises DaemonError for a socket that is something else: the daemon listens on no network because a unit says so.
    """
    named = [os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    pid, count = named[:2]
    if pid != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return []
    descriptors = range(FIRST_SOCKET, FIRST_SOCKET + int(count))
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, False)
    return [_checked(descriptor) for descriptor in descriptors]


def _checked(descriptor: int) -> socket.socket:
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise DaemonError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror}") from None
    stream = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
    if not stream or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        kind = f"{passed.family.name}, {passed.type.name}"
        passed.detach()
        raise DaemonError(
            f"LISTEN_FDS: descriptor {descriptor} is a socket of {kind}, expected a listening Unix socket"
        )
    return passed


def _value(state: object) -> str:
    return " ".join(str(state).split())[:LONGEST_VALUE]
