"""Peak memory of one call, measured in a process of its own.

Measured is resident memory: the highest it gets during the call minus what it was just before (VmHWM minus VmRSS of
/proc/self/status, after the high-water mark was reset through /proc/self/clear_refs and free heap memory was given
back). Inputs are there before and do not count; what the call returns counts. Only Linux tells this, to about 1 MiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

TIMEOUT_SECONDS = 300.0
RESET_PEAK = "5"  # proc(5): writing 5 to clear_refs resets the peak resident set size

# Imported once by the process that the measuring processes are forked from. None of them starts a thread.
PRELOADED = ["torch", "faops", "benchmarks.peers"]

Result = TypeVar("Result")


def peak_of(call: Callable[[], Any]) -> int:
    """Bytes by which resident memory rises above its present size during ``call``, in this process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status("VmRSS")
    kept = call()
    peak = _status("VmHWM")
    del kept
    return max(0, peak - before)


class ChildError(Exception):
    """Why a child process has no result."""


def in_child(function: Callable[..., Result], *arguments: Any) -> Result:
    """What ``function`` returns when called in a fresh process. Raises ChildError when it raises, dies or hangs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(sender, function, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_SECONDS):
            raise ChildError(f"no answer within {TIMEOUT_SECONDS:g} s")
        result, failure = receiver.recv()
    except EOFError:
        child.join()
        raise ChildError(f"the process ended with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if failure:
        raise ChildError(failure)
    return result  # type: ignore[no-any-return]


def _report(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = function(*arguments), ""
    except Exception as raised:
        error: BaseException = raised
        while error.__cause__ is not None:  # what a compiler was told, and not what it made of it
            error = error.__cause__
        answer = None, ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    sender.send(answer)


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
