"""A worker that does what it is told, and starts in no time because it imports nothing of faops; and its handle."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from faops.daemon.child import WorkerChild
from faops.daemon.jobs import Job, Task

# Runs the Python text under "do" of each request, which answers by reply(value), tells by tell(event) and may look at
# what is listed in controls: the requests without an answer that came before.
OBEDIENT = """
import ctypes, faulthandler, json, os, signal, socket, subprocess, sys, time
faulthandler.enable()
channel = socket.socket(fileno=int(sys.argv[1]))
os.set_inheritable(channel.fileno(), False)
controls = []
def send(text):
    channel.sendall(text.encode() + b"\\n")
def reply(value=None):
    send(json.dumps({"serial": request["serial"], "value": value}))
def fail(kind, message):
    send(json.dumps({"serial": request["serial"], "error": {"type": kind, "message": message}}))
def tell(**event):
    send(json.dumps({"serial": request["serial"], "event": event}))
def start(program="import time; time.sleep(100)", **options):
    return subprocess.Popen([sys.executable, "-c", program], **options).pid
def hear():
    controls.append(json.loads(lines.readline()))
lines = channel.makefile("rb")
for line in lines:
    request = json.loads(line)
    if "serial" not in request:
        controls.append(request)
        if request["do"] == "exit":
            break
    elif request["do"] == "prepare":
        reply()
    else:
        exec(request["task"]["words"] if request["do"] == "tune" else request["do"])
"""

LIMIT = 30.0  # far more than anything here takes, on a busy machine too
TASK = Task("cpu_x", "schema-1", "cpu", 2, "key", {"op": "forward"}, "reply(request)", 0.5, 10.0)
JOB = Job(7, TASK, "miss", "running")

T = TypeVar("T")
Body = Callable[[WorkerChild], Awaitable[T]]


def with_child(body: Body[T], program: str = OBEDIENT) -> T:
    """What ``body`` makes of a child, which is ended in any case."""

    async def run() -> T:
        child = await WorkerChild.start(program=program)
        try:
            return await asyncio.wait_for(body(child), LIMIT)
        finally:
            await child.stop(0.0)
            assert child.gone
            assert child.pids() == []
            assert_reaped(child.pid)

    return asyncio.run(run())


def assert_reaped(pid: int) -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def told_to(words: str, **changes: Any) -> Job:
    return replace(JOB, task=replace(TASK, words=words, **changes))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
