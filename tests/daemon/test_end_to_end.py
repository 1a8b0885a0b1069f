"""The real daemon on this machine's CPU: a program misses, the daemon tunes, the same program speeds up."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faops import processes
from faops.daemon import log, paths
from faops.daemon.queue import Queue

from .processes import LIMIT, Daemon, install_slow_kernel, wait_until
from .slow_kernel import HEAD_DIM, REST_SECONDS

# Calls attention over and over, and says how long each call took.
PROGRAM = f"""
import time, torch, faops
torch.set_num_threads(1)
q = torch.randn(1, 64, 2, {HEAD_DIM})
while True:
    start = time.perf_counter()
    faops.attention(q, q, q)
    print(time.perf_counter() - start, flush=True)
    time.sleep(0.01)
"""
MOST_IDLE_BYTES = 80 * 10**6


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process finds the slow backend, and computes with one thread."""
    install_slow_kernel(tmp_path / "site")
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def run() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons and programs that end with the test."""
    started: list[Daemon] = []

    def start(*arguments: str) -> Daemon:
        started.append(Daemon(*arguments))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


def shape(length: int) -> str:
    return f"b=1,sq={length},sk={length},h=2,d={HEAD_DIM},dtype=float32"


def log_lines(event: str) -> list[dict[str, Any]]:
    """What the daemons of this test have logged of one kind."""
    lines = [json.loads(line) for line in log.tail(paths.log_path(), 100_000)]
    return [line for line in lines if line["event"] == event]


def test_a_running_program_speeds_up(run: Callable[..., Daemon]) -> None:
    daemon = run("--no-idle-gate")
    daemon.wait_until_ready()
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        times = (float(line) for line in program.stdout)
        slow = [next(times) for _ in range(5)]
        assert min(slow[1:]) > REST_SECONDS
        begun = time.monotonic()
        while next(times) > REST_SECONDS / 2:
            assert time.monotonic() - begun < LIMIT, "it never got faster"
        wait_until(lambda: daemon.client.status()["jobs"]["done"] == 1)
    finally:
        program.kill()
        program.communicate()
    [job] = daemon.client.winners()
    assert (job["source"], job["state"]) == ("miss", "done")
    assert job["result"]["default_config"] == {"rest": True} and job["result"]["speedup"] > 2
    assert not list(Path(os.environ["FAOPS_CACHE_DIR"]).rglob("misses/*.json"))  # it is known now
    check_that_an_idle_daemon_is_small(daemon)
    assert daemon.stop() == 0


def check_that_an_idle_daemon_is_small(daemon: Daemon) -> None:
    """Nothing of torch is left, neither in it nor in a child."""
    wait_until(lambda: not daemon.descendants())
    assert processes.memory_bytes(daemon.process.pid) < MOST_IDLE_BYTES
    resident = next(line for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
                    if line.startswith("VmRSS"))  # fmt: skip
    assert int(resident.split()[1]) * 1024 < MOST_IDLE_BYTES


def test_sigterm_abandons_what_is_measured(run: Callable[..., Daemon]) -> None:
    """Its job waits for the next daemon."""
    daemon = run("--no-idle-gate")
    daemon.wait_until_ready()
    job = daemon.client.submit({"shapes": [shape(64)]})["id"]
    wait_until(lambda: daemon.client.status()["running"])
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 10
    with Queue(paths.queue_path()) as queue:
        assert [queue.job(id).state for id in queue.submission(job).jobs] == ["waiting"]


def test_sighup_reads_the_settings_again(run: Callable[..., Daemon], tmp_path: Path) -> None:
    settings = Path(os.environ["FAOPS_CONFIG"])
    settings.write_text("daemon_idle_seconds: 7\n")
    daemon = run()
    daemon.wait_until_ready()
    assert daemon.client.status()["settings"]["idle_seconds"] == 7
    settings.write_text("daemon_idle_seconds: 9\n")
    os.utime(settings, (1, 1))  # another time than before, whatever the clock's resolution
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.client.status()["settings"]["idle_seconds"] == 9)
    settings.write_text("daemon_idle_seconds: soon\n")
    os.utime(settings, (2, 2))
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: log_lines("not_reloaded"))
    assert daemon.client.status()["settings"]["idle_seconds"] == 9
    assert daemon.stop() == 0


def test_a_second_daemon_says_who_runs(run: Callable[..., Daemon]) -> None:
    daemon = run()
    daemon.wait_until_ready()
    second = run()
    _, said = second.process.communicate(timeout=LIMIT)
    assert second.process.returncode == 1
    assert f"pid {daemon.process.pid}" in said.decode() and "Traceback" not in said.decode()
    assert daemon.stop() == 0


@pytest.mark.full
@pytest.mark.parametrize("kills", [5, 100])
def test_killed_daemons_lose_no_job_and_repeat_none(run: Callable[..., Daemon], kills: int) -> None:
    lengths = [8 << index for index in range(3 if kills == 5 else 12)]
    daemon = run("--no-idle-gate")
    daemon.wait_until_ready()
    submissions = [daemon.client.submit({"shapes": [shape(length)]})["id"] for length in lengths]
    for _ in range(kills):
        time.sleep(random.choice((random.uniform(0, 1), random.uniform(0, 1), random.uniform(3, 8))))  # tuning, too
        daemon.kill()
        daemon = run("--no-idle-gate")
    daemon.wait_until_ready()
    wait_until(lambda: daemon.client.status()["jobs"]["done"] == len(lengths), 3 * LIMIT)
    assert {daemon.client.submission(submission)["state"] for submission in submissions} == {"expanded"}
    assert daemon.stop() == 0
    # Every line is written when it has happened, but a kill may come before it: no job is begun after it was done.
    done: set[int] = set()
    for line in sorted(log_lines("job_begun") + log_lines("job_done"), key=lambda line: line["time"]):
        assert line["job"] not in done, f"{line['event']} of a job that was done"
        if line["event"] == "job_done":
            done.add(line["job"])
