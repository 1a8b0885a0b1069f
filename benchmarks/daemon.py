"""What the tuning daemon gives and takes on this machine's CPU.

    python -m benchmarks.daemon
    python -m benchmarks.daemon --quick      less repetition; the result goes to build/benchmarks

``miss``: from a program's untuned call until the running program would call the winner, step by step.
``memory``: what the daemon holds while idle, and what it and its children hold while they tune.
``latency``: requests of 200 clients at once on the daemon's socket.
``foreground``: a program that calls attention all the time, beside a daemon with jobs to do and its gate on, against
the same program beside one that is stopped (SIGSTOP); in blocks that alternate.
``arrival``: that program begins while the daemon is tuning: how much its first seconds are slowed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.harness import summary
from faops import processes
from faops.autotune.measurement.clocks import quantile
from faops.daemon.client import Client
from faops.errors import DaemonError

NAME = "daemon"
CLIENTS, REQUESTS = 200, 20  # clients at once, and requests of each
LIMIT = 300.0  # seconds for what takes some ten
IDLE_SECONDS = 2.0  # of the gate, where it is not what is measured
BLOCK_SECONDS = 8.0
MODEL = {"model": "smollm2-135m"}

# Calls attention all the time, and says when each call began and how long it took.
LOOP = """
import sys, time, torch, faops
q, k = torch.randn(1, 512, 9, 64), torch.randn(1, 512, 3, 64)
for _ in range(20):
    faops.attention(q, k, k, causal=True)
print("ready", flush=True)
sys.stdin.readline()
while True:
    start = time.monotonic()
    faops.attention(q, k, k, causal=True)
    print(start, time.monotonic() - start, flush=True)
"""

# Runs one untuned problem, then looks for its plan twice a second and says where that comes from.
PROGRAM = """
import time, torch, faops
from faops import dispatch
from faops.device import detect
from faops.problem import parse_shape
q = torch.randn(1, 384, 6, 64)
faops.attention(q, q, q, causal=True, softcap=30.0)
problem = parse_shape("b=1,sq=384,sk=384,h=6,d=64,causal=1,softcap=1,dtype=float32")
while True:
    print(time.time(), dispatch.plan(problem, detect("cpu")).source, flush=True)
    time.sleep(0.5)
"""


@contextlib.contextmanager
def daemon(**settings: object) -> Iterator[tuple[Client, int]]:
    """A daemon with directories and settings of its own: its client and its pid."""
    with tempfile.TemporaryDirectory(prefix="faops-") as root:
        own = {f"FAOPS_{name.upper()}": str(value) for name, value in settings.items()}
        places = {name: f"{root}/{name}" for name in ("state", "run", "cache")}
        os.environ |= {
            **own, "FAOPS_STATE_DIR": places["state"], "FAOPS_RUNTIME_DIR": places["run"],
            "FAOPS_CACHE_DIR": places["cache"],
        }  # fmt: skip
        command = [sys.executable, "-m", "faops_cli", "daemon", "run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = Client()
            wait_until(lambda: answers(client))
            wait_until(lambda: client.status()["devices"])
            yield client, process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(LIMIT)
            for name in own:
                os.environ.pop(name)


def answers(client: Client) -> bool:
    """Whether the daemon does."""
    with contextlib.suppress(DaemonError):
        return client.ready()[0]
    return False


def wait_until(condition: Callable[[], object]) -> float:
    """Wait until something is true; the seconds it took."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > LIMIT:
            raise TimeoutError("the daemon does not do what it should")
        time.sleep(0.05)
    return time.monotonic() - start


@contextlib.contextmanager
def program(text: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program beside this one."""
    process = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# --- from a miss to its winner ----------------------------------------------------------------------------------------


def miss(rounds: int, **settings: object) -> dict[str, Any]:
    """Seconds of each step, from the untuned call on; a fresh daemon and cache each round."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with daemon(**settings) as (client, _), program(PROGRAM) as running:
            assert running.stdout is not None
            first = float(running.stdout.readline().split()[0])
            served = next(float(line.split()[0]) for line in running.stdout if line.split()[1] == "tuned")
            wait_until(lambda: client.winners())
            [job] = client.winners()
            times = [first, *(epoch(job[name]) for name in ("created", "begun", "finished")), served]
        steps = ("queued", "begun", "tuned", "served")
        for name, start, end in zip(steps, times, times[1:]):
            found.setdefault(name, []).append(end - start)
        found.setdefault("whole", []).append(served - first)
    return {name: summary(samples) for name, samples in found.items()}


def epoch(text: str) -> float:
    """Seconds of a time in ISO 8601."""
    import datetime

    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(rounds: int) -> dict[str, Any]:
    """Bytes, pages that several processes share counted in parts; the largest of some looks while it tunes."""
    found: dict[str, list[float]] = {"idle": [], "idle_resident": [], "tuning": []}
    for _ in range(rounds):
        with daemon(daemon_idle_gate=0) as (client, pid):
            wait_until(lambda: not processes.descendants(pid))
            found["idle"].append(processes.memory_bytes(pid))
            found["idle_resident"].append(resident(pid))
            client.submit(MODEL)
            wait_until(lambda: any(one["done"] for one in client.status()["running"]))
            looks = []
            for _ in range(20):
                looks.append(sum(map(processes.memory_bytes, [pid, *processes.descendants(pid)])))
                time.sleep(0.1)
            found["tuning"].append(max(looks))
    return {name: {"median": statistics.median(samples), "samples": samples} for name, samples in found.items()}


def resident(pid: int) -> float:
    """VmRSS in bytes: shared pages count in full."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmRSS")).split()[1])


# --- latency ----------------------------------------------------------------------------------------------------------


def latency(rounds: int) -> dict[str, Any]:
    """Seconds a request of GET /v1/status, each client over one connection; and with one client alone."""
    from faops.daemon import paths

    with daemon(daemon_idle_gate=0) as (client, pid):
        client.pause("a benchmark", None)
        client.submit(MODEL)
        wait_until(lambda: client.status()["jobs"]["waiting"])
        wait_until(lambda: not processes.descendants(pid))
        path = str(paths.socket_path())
        together = [one for _ in range(rounds) for one in asyncio.run(crowd(path, CLIENTS))]
        alone = [one for _ in range(rounds) for one in asyncio.run(crowd(path, 1))]
    return {f"{CLIENTS} clients": quantiles(together), "1 client": quantiles(alone)}


async def crowd(path: str, clients: int) -> list[float]:
    """The requests of clients that all begin at once."""
    begin = asyncio.Event()
    running = [asyncio.ensure_future(visitor(path, begin)) for _ in range(clients)]
    await asyncio.sleep(0.5)
    begin.set()
    return [seconds for samples in await asyncio.gather(*running) for seconds in samples]


async def visitor(path: str, begin: asyncio.Event) -> list[float]:
    """One client: plain HTTP/1.1 on the socket, so that what is timed is the daemon."""
    reader, writer = await asyncio.open_unix_connection(path)
    await begin.wait()
    samples = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: faops\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line for line in head.splitlines() if line.startswith("content-length:"))
        await reader.readexactly(int(length.split(":")[1]))
        samples.append(time.perf_counter() - start)
        assert head.startswith("http/1.1 200"), head
    writer.close()
    return samples


def quantiles(samples: Sequence[float]) -> dict[str, Any]:
    """p50 and p99 beside the raw samples."""
    return {**summary(samples), "p50": quantile(samples, 0.5), "p99": quantile(samples, 0.99)}


# --- a program in the foreground --------------------------------------------------------------------------------------


def foreground(blocks: int) -> dict[str, Any]:
    """Median seconds a call in each block, beside a daemon that is stopped and one that has jobs to do, in turn."""
    found: dict[str, list[float]] = {"stopped": [], "beside": []}
    with daemon(daemon_idle_seconds=IDLE_SECONDS) as (client, pid), program(LOOP) as loop:
        client.submit(MODEL)
        begin(loop)
        wait_until(lambda: client.status()["jobs"]["waiting"])
        for block in range(2 * blocks):
            name, number = ("stopped", signal.SIGSTOP) if block % 2 else ("beside", signal.SIGCONT)
            os.kill(pid, number)
            calls(loop, 1.0)
            found[name].append(statistics.median(calls(loop, BLOCK_SECONDS)))
    ratios = [beside / stopped - 1 for beside, stopped in zip(found["beside"], found["stopped"])]
    return {**{name: summary(samples) for name, samples in found.items()}, "slow_down": summary(ratios)}


def arrival(rounds: int) -> dict[str, Any]:
    """How much longer calls take in the first seconds of a program that begins while the daemon tunes, against its
    calls from BLOCK_SECONDS on with the daemon stopped."""
    spans = {"first second": (0.0, 1.0), "seconds 2 to 5": (1.0, 5.0), "after": (5.0, BLOCK_SECONDS)}
    found: dict[str, list[float]] = {name: [] for name in spans}
    for _ in range(rounds):
        with daemon(daemon_idle_seconds=IDLE_SECONDS) as (client, pid), program(LOOP) as loop:
            assert loop.stdout is not None
            loop.stdout.readline()
            client.submit({**MODEL, "force": True})
            wait_until(lambda: any(one["done"] for one in client.status()["running"]))
            began = time.monotonic()
            begin(loop, ready=True)
            timed = timed_calls(loop, BLOCK_SECONDS)
            os.kill(pid, signal.SIGSTOP)
            usual = statistics.mean(calls(loop, BLOCK_SECONDS))
        for name, (start, end) in spans.items():
            within = [seconds for moment, seconds in timed if start <= moment - began < end]
            found[name].append(statistics.mean(within) / usual - 1)
    return {name: summary(samples) for name, samples in found.items()}


def begin(loop: subprocess.Popen[str], ready: bool = False) -> None:
    """Let the loop begin, once it is ready."""
    assert loop.stdin is not None and loop.stdout is not None
    if not ready:
        loop.stdout.readline()
    loop.stdin.write("\n")
    loop.stdin.flush()


def timed_calls(loop: subprocess.Popen[str], seconds: float) -> list[tuple[float, float]]:
    """When each call of the next seconds began, and how long it took."""
    assert loop.stdout is not None
    until, found = time.monotonic() + seconds, []
    while not found or found[-1][0] < until:
        moment, took = loop.stdout.readline().split()
        found.append((float(moment), float(took)))
    return found


def calls(loop: subprocess.Popen[str], seconds: float) -> list[float]:
    """How long each call of the next seconds took."""
    return [took for _, took in timed_calls(loop, seconds)]


# ----------------------------------------------------------------------------------------------------------------------


def show(name: str, part: dict[str, Any], unit: str = "s") -> None:
    """Print the medians of a part."""
    scale = {"s": 1.0, "MB": 1e-6, "%": 100.0, "ms": 1e3}[unit]
    for key, item in part.items():
        more = f", p99 {item['p99'] * scale:.2f}" if "p99" in item else ""
        print(f"{name:12} {key:24} {item['median'] * scale:10.2f} {unit}{more}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less repetition; the result goes to build/benchmarks")
    quick = parser.parse_args().quick
    rounds, blocks = (1, 2) if quick else (3, 10)
    result = record.header(NAME, rounds=rounds, blocks=blocks, clients=CLIENTS, requests=REQUESTS)
    parts: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
        "latency": (lambda: latency(rounds), "ms"),
        "memory": (lambda: memory(rounds), "MB"),
        "miss": (lambda: miss(rounds), "s"),
        "miss, idle gate of 2 s": (lambda: miss(rounds, daemon_idle_seconds=IDLE_SECONDS), "s"),
        "foreground": (lambda: foreground(blocks), "s"),
        "arrival": (lambda: arrival(rounds), "%"),
    }
    for name, (measure, unit) in parts.items():
        result[name] = measure()
        show(name, result[name], unit)
    print(f"wrote {record.write(result, quick).relative_to(record.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
