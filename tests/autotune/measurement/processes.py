"""Processes that do what they are told, and start in no time because they import nothing of faops."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping

# Runs the Python text of each request under "do"; it answers by reply(value).
OBEDIENT = """
import ctypes, faulthandler, json, os, signal, socket, subprocess, sys, time
faulthandler.enable()
channel = socket.socket(fileno=int(sys.argv[1]))
os.set_inheritable(channel.fileno(), False)
def send(text):
    channel.sendall(text.encode() + b"\\n")
def reply(value):
    send(json.dumps({"serial": request["serial"], "value": value}))
for line in channel.makefile("rb"):
    request = json.loads(line)
    exec(request["do"])
"""


def compiler(known: Mapping[str, str]) -> str:
    """A program that has the kernels ``known`` (fingerprints by id); to compile a config it runs the text under its
    name "do", by default an answer that tells registers."""
    text = OBEDIENT.replace('exec(request["do"])', "obey()")
    return text.replace(
        "for line in",
        f"""
KNOWN = json.loads({json.dumps(dict(known))!r})
def obey():
    if request["do"] == "prepare":
        reply(KNOWN)
    else:
        exec(request["config"].get("do") or "compiled(32)")
def compiled(registers):
    reply({{"registers": registers, "spill_bytes": 0, "shared_bytes": 1024}})
def fail(name, message):
    send(json.dumps({{"serial": request["serial"], "error": {{"type": name, "message": message}}}}))
for line in""",
    )


def alive(process: int) -> bool:
    """Whether a process runs: one that has ended and is not waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def ends(process: int, seconds: float = 10.0) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(process)


def descriptors() -> set[str]:
    """Open descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))
