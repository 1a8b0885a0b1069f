"""The misses of other processes, while these write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faops import hits
from faops.daemon.spool import LOOK_SECONDS, Spool

from .support import Clock, content, directory

WRITER = """
import json, os, sys
from pathlib import Path
from faops import hits
from faops.files import file_name

place, text = Path(sys.argv[1]), sys.argv[2]
for number in range(300):
    path = place / file_name(str(number))
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    line = text.replace("KEY", str(number)).encode()
    os.write(descriptor, line[:50])
    os.write(descriptor, line[50:])
    os.close(descriptor)
    for _ in range(number % 4):
        hits.add(path, 1)
    if number % 10 == 0:
        path.unlink()
        hits.remove(path)
"""


def test_beside_a_process_that_writes(spool: Spool, root: Path, clock: Clock) -> None:
    place = directory(root)
    place.mkdir(parents=True)
    text = json.dumps(content("KEY"))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(place), text])
    known: dict[str, int] = {}
    try:
        while True:
            done = writer.poll() is not None
            clock.seconds += LOOK_SECONDS
            for _ in range(3):
                known.update({miss.key: miss.hits for miss in spool.poll()})
            if done:
                break
    finally:
        writer.kill()
        assert writer.wait() == 0
    kept = {str(number): 1 + number % 4 for number in range(300) if number % 10}
    assert {key: known[key] for key in kept} == kept
    assert all(key in kept or int(key) % 10 == 0 for key in known)
    assert all("not whole" in problem for problem in spool.problems)  # this clock outruns a writer that has to wait


PROGRAM = """
import sys, torch, faops

q = torch.randn(1, 16, 2, 16)
for line in sys.stdin:
    for _ in range(int(line)):
        faops.attention(q, q, q, causal=True)
    print("done", flush=True)
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """A program that makes as many calls as it reads in a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    yield process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def calls(program: subprocess.Popen[str], count: int) -> None:
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(f"{count}\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


def test_a_program_shows_its_hits_until_its_winner_arrives(program: subprocess.Popen[str], clock: Clock) -> None:
    from faops import dispatch, registry
    from faops.autotune.cache import TuningCache, misses
    from faops.device import DeviceProfile
    from faops.problem import AttentionProblem
    from tests.autotune.support import make_entry

    cache = TuningCache()
    spool = Spool(cache.root, clock)
    calls(program, 1)
    (miss,) = spool.poll()
    assert (miss.hits, miss.device["torch_type"], miss.device["threads"]) == (1, "cpu", 1)
    calls(program, 999)
    clock.seconds += LOOK_SECONDS
    (miss,) = spool.poll()
    assert 500 <= miss.hits <= 1000

    device, problem = DeviceProfile(**miss.device), AttentionProblem.from_dict(miss.problem)
    assert (device.identity, problem.key()) == (miss.identity, miss.key)
    (kernel, *_) = dispatch.runnable(registry.kernels("forward"), problem, device)
    cache.store(device, make_entry(device, problem, kernel=kernel.id, source_hash=kernel.source_hash(),
                                   config=kernel.default_config(problem, device)))  # fmt: skip
    assert misses.settle(cache, device.identity) == 0
    assert not miss.path.exists() and not hits.place(miss.path).exists()
    calls(program, 2000)  # whether it has seen its winner or not, it leaves nothing
    assert not miss.path.exists() and not hits.place(miss.path).exists()
    clock.seconds += LOOK_SECONDS
    assert spool.poll() == []
