"""Peak memory of one call, measured in a process of its own.

Measured is resident memory: the highest it gets during the call minus what it was just before (VmHWM minus VmRSS of
/proc/self/status, after the high-water mark was reset through /proc/self/clear_refs and free heap memory was given
back). Inputs are there before and do not count; what the call returns counts. Only Linux tells this.
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
from typing import Any

TIMEOUT_SECONDS = 300.0
RESET_PEAK = "5"  # proc(5): writing 5 to clear_refs resets the peak resident set size

# Imported once by the process that the measuring processes are forked from. None of them starts a thread.
PRELOADED = ["torch", "faops", "benchmarks.peers"]

Measured = dict[str, int]  # what was called -> bytes


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


def in_child(measure: Callable[..., Measured], *arguments: Any) -> Measured | str:
    """What ``measure`` returns when called in a fresh process, or why it returned nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_report, args=(sender, measure, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_SECONDS):
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        answer: Measured | str = receiver.recv()
        return answer
    except EOFError:
        child.join()
        return f"the process ended with exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()
        receiver.close()


def _report(sender: Connection, measure: Callable[..., Measured], arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(measure(*arguments))
    except Exception as error:  # told to the parent, which writes it into the result
        sender.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
