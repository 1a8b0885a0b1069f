"""A process that measures, checks and compiles configs for another one, which outlives it.

It reads requests from a socket and answers each: ``{"serial", "value"}``, or ``{"serial", "error": {"type",
"message"}}`` with the name of an exception's class. It ends when the socket is closed, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import queue
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from faops import registry
from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile
from faops.errors import FaopsWarning, TuningError
from faops.problem import AttentionProblem
from faops.registry import Config, Kernel

Json = dict[str, Any]

FIRST_TO_GO = 1000  # the highest score of the process to end when memory runs out (source: proc(5))
LIMITS = 2  # a request that takes this many times its limit ends the process, even if nobody waits any more


def fingerprint(kernel: Kernel) -> str:
    """What two processes must agree on to mean the same kernel by an id: its class and its code."""
    return f"{type(kernel).__module__}.{type(kernel).__qualname__} {kernel.source_hash()}"


class Worker:
    """Holds the inputs of the problem opened last. Each public method is a request; all raise what kernels raise."""

    def __init__(self) -> None:
        self.bench: DeviceBench | None = None
        self.missing: list[str] = []  # modules that cannot be imported here, and why

    def prepare(self, threads: int, modules: Sequence[str]) -> dict[str, str]:
        """Compute with so many threads, import the modules that add devices and register kernels; the kernels'
        fingerprints by id, which tell those that are not known here."""
        torch.set_num_threads(threads)
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:
                self.missing.append(f"{module}: {type(error).__name__}: {error}")
        return {kernel.id: fingerprint(kernel) for kernel in registry.kernels()}

    def open(self, problem: Json, device: str, profile: Json) -> None:
        """Make the inputs of a problem, which the requests that follow are about."""
        self.bench = None  # frees the inputs of the problem before
        asked = AttentionProblem.from_dict(problem)
        self.bench = DeviceBench(asked, self._device(device), DeviceProfile(**profile))

    def sample(self, kernel: str, config: Json, budget: Json) -> Json:
        """Samples in seconds a call, and their conditions."""
        found = self._opened().sampled(_candidate(kernel, config), Budget(**budget))
        return {"samples": found.samples, "conditions": found.conditions.as_dict()}

    def check(self, kernel: str, config: Json) -> None:
        self._opened().check(_candidate(kernel, config))

    def compile(self, kernel: str, config: Json, problem: Json, profile: Json) -> Json | None:
        """Fields of Resources, None where there is nothing to compile."""
        asked = AttentionProblem.from_dict(problem)
        found = _kernel(kernel).compile(asked, DeviceProfile(**profile), Config(config))
        return None if found is None else asdict(found)

    def _device(self, name: str) -> torch.device:
        try:
            return torch.device(name)
        except RuntimeError:  # torch does not know the type
            why = f" ({'; '.join(self.missing)})" if self.missing else ""
            raise TuningError(f"the measuring process has no device {name}{why}") from None

    def _opened(self) -> DeviceBench:
        if self.bench is None:
            raise TuningError("no problem was opened")
        return self.bench


def _candidate(kernel: str, config: Json) -> Candidate:
    return Candidate(_kernel(kernel), Config(config))


def _kernel(name: str) -> Kernel:
    found = registry.get(name)
    if found is None:
        raise TuningError(f"the measuring process knows no kernel {name}")
    return found


REQUESTS: Mapping[str, Callable[..., Any]] = {
    "prepare": Worker.prepare,
    "open": Worker.open,
    "sample": Worker.sample,
    "check": Worker.check,
    "compile": Worker.compile,
}


def answer(worker: Worker, request: Json) -> Json:
    """What to send back for a request. faops's warnings go along, since nobody reads what this process prints."""
    given = {name: value for name, value in request.items() if name not in ("serial", "limit", "do")}
    serial, do = request["serial"], REQUESTS[request["do"]]
    result: Json = {"serial": serial}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", FaopsWarning)
        try:
            result["value"] = do(worker, **given)
        except Exception as error:  # whatever a kernel raises is an answer
            result["error"] = {"type": type(error).__name__, "message": str(error)}
    result["warnings"] = [str(item.message) for item in caught if issubclass(item.category, FaopsWarning)]
    return result


def answer_in_time(worker: Worker, request: Json) -> Json:
    """The answer, or the end of this process: a kernel that hangs without ever letting another thread of Python run
    would outlive the process that asks."""
    faulthandler.dump_traceback_later(LIMITS * request["limit"], exit=True)
    try:
        return answer(worker, request)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _read(channel: socket.socket, requests: queue.SimpleQueue[Json]) -> None:
    """Queue what comes. At the end the other process is gone, or done with this one."""
    with contextlib.suppress(OSError), channel.makefile("rb") as lines:
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


def main(descriptor: int) -> None:
    """Answer what comes through the socket ``descriptor`` until it is closed."""
    faulthandler.enable(all_threads=False)
    with contextlib.suppress(OSError):  # not Linux; a config that eats all memory must not cost the program that asks
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))
    os.set_inheritable(descriptor, False)  # what a kernel starts must not keep the socket open
    channel = socket.socket(fileno=descriptor)
    requests: queue.SimpleQueue[Json] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(channel, requests), daemon=True).start()
    worker = Worker()
    while True:
        request = requests.get()
        line = json.dumps(answer_in_time(worker, request))
        channel.sendall(line.encode() + b"\n")
