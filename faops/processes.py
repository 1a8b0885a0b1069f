"""Other processes: what they have started, ending all of that, and how one ended in words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Collection
from pathlib import Path

PROCESSES = Path("/proc")
SHOWN_LINES = 3  # of what a process printed, in a message

# Of /proc/PID/stat, behind the name of the process (source: proc(5)).
_DEAD = ("Z", "X")  # states of a process that has ended
_BORN = 19  # field of its start time


def descendants(pid: int) -> list[int]:
    """What process ``pid`` has started, and what that has, parents first. Empty where the system does not tell."""
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found[1:]


def _children(pid: int) -> list[int]:
    """Children of all threads of a process; none of one that is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(PROCESSES / str(pid) / "task"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                text = (PROCESSES / str(pid) / "task" / thread / "children").read_text()
                found += map(int, text.split())
    return found


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and is not waited for does not."""
    fields = _status(pid)
    return bool(fields) and fields[0] not in _DEAD


def born(pid: int) -> str:
    """When a process began, in a form that differs for another one of the same number; "" where there is none."""
    fields = _status(pid)
    return fields[_BORN] if len(fields) > _BORN else ""


def _status(pid: int) -> list[str]:
    """What the system tells of a process behind its name; nothing of one that is gone."""
    try:
        return (PROCESSES / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def end_with_descendants(pid: int) -> None:
    """End a process and all that it has started, now. One that is gone is no error."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts nothing more meanwhile
    end([pid, *descendants(pid)])


def end(pids: Collection[int]) -> None:
    """End processes now; those that lead a group, with the whole group. One that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(OSError):
            leads = os.getpgid(pid) == pid
            (os.killpg if leads else os.kill)(pid, signal.SIGKILL)


def reap(pids: Collection[int]) -> None:
    """Let those go that have ended and were left to this process, as the first process of a container must."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)


def memory_bytes(pid: int) -> int:
    """Memory that a process holds, a page that several share counted in parts; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        text = (PROCESSES / str(pid) / "smaps_rollup").read_text()
        found = re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((PROCESSES / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def how_it_ended(code: int | None) -> str:
    """An exit code as subprocess has it, in words; None for a process that still runs."""
    if code is None:
        return "the process closed its connection"
    if code >= 0:
        return f"the process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
    return f"the process was ended by {name}{hint}"


def with_last_words(message: str, output: str) -> str:
    """``message`` with what a process printed last: the innermost frame of a fatal error, else its last lines."""
    fatal = re.search(r"^(Fatal Python error: .*)$", output, re.MULTILINE)
    if fatal:
        frame = re.search(r'^  (File ".*)$', output[fatal.end() :], re.MULTILINE)
        lines = [fatal.group(1), *([frame.group(1)] if frame else [])]
    else:
        lines = [line.strip() for line in output.splitlines() if line.strip()][-SHOWN_LINES:]
    return f"{message}: {' | '.join(lines)}" if lines else message
