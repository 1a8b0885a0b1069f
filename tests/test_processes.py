"""Other processes: what they have started, and ending it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faops import processes

SLEEP = "import time; time.sleep(100)"
FAMILY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True); {SLEEP}"
IN_A_THREAD = f"import threading; threading.Thread(target=lambda: exec({FAMILY!r})).start()"


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(params=[FAMILY, IN_A_THREAD])
def family(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child in a session of its own."""
    with subprocess.Popen([sys.executable, "-c", request.param]) as process:
        soon(lambda: processes.descendants(process.pid))
        yield process
        processes.end_with_descendants(process.pid)


def test_a_process_is_ended_with_all_that_it_started(family: subprocess.Popen[bytes]) -> None:
    (child,) = processes.descendants(family.pid)
    found = processes.descendants(os.getpid())
    assert [pid for pid in found if pid in (family.pid, child)] == [family.pid, child]  # other tests started others
    assert processes.born(family.pid) != "" != processes.born(child)
    processes.end_with_descendants(family.pid)
    assert family.wait() == -signal.SIGKILL
    soon(lambda: not processes.alive(child))
    assert not processes.alive(family.pid)
    processes.end_with_descendants(family.pid)  # it is gone, and that is no error
    processes.reap([family.pid, os.getpid()])


def test_a_group_is_ended_with_its_leader() -> None:
    program = FAMILY.replace(", start_new_session=True", "")
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as process:
        soon(lambda: processes.descendants(process.pid))
        (child,) = processes.descendants(process.pid)
        processes.end([process.pid])
    soon(lambda: not processes.alive(child))


def test_one_that_waits_to_be_reaped_is_not_alive() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    soon(lambda: not processes.alive(pid))
    assert processes.born(pid) != ""
    processes.reap([pid])
    assert processes.born(pid) == ""
    assert processes.memory_bytes(pid) == 0
    assert processes.descendants(pid) == []


def test_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = Path("/proc/self/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
    assert resident / 4 < processes.memory_bytes(os.getpid()) <= resident * 1.2
    monkeypatch.setattr(processes, "PROCESSES", tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "statm").write_text("900 30 4 5 6 7 8\n")
    assert processes.memory_bytes(1) == 30 * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "1" / "smaps_rollup").write_text("0-1 ---p 0 0 [rollup]\nRss:  99 kB\nPss:\t 7 kB\nPss_Anon: 5 kB\n")
    assert processes.memory_bytes(1) == 7 * 1024


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "PROCESSES", tmp_path)
    assert processes.descendants(os.getpid()) == []
    assert processes.memory_bytes(os.getpid()) == 0
    assert processes.born(os.getpid()) == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "the process closed its connection"),
        (3, "the process ended with exit code 3"),
        (-9, "the process was ended by SIGKILL, perhaps for want of memory"),
        (-11, "the process was ended by SIGSEGV"),
        (-250, "the process was ended by signal 250"),
    ],
)
def test_how_one_ended(code: int | None, words: str) -> None:
    assert processes.how_it_ended(code) == words


def test_last_words() -> None:
    assert processes.with_last_words("it ended", "\n \n") == "it ended"
    assert processes.with_last_words("it ended", "a\n\n b \nc\nd\n") == "it ended: b | c | d"
    fatal = 'x\nFatal Python error: Aborted\n\nCurrent thread:\n  File "a.py", line 1\n  File "b.py", line 2\n\nend\n'
    assert processes.with_last_words("it ended", fatal) == 'it ended: Fatal Python error: Aborted | File "a.py", line 1'
