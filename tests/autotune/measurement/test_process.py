"""Processes that answer requests, crash, hang, talk nonsense or print without end: what the asking side sees of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

from faops.autotune import effort
from faops.autotune.measurement import process
from faops.autotune.measurement.process import Child
from faops.errors import CrashedError, HangError, TuningError

from .processes import OBEDIENT, alive, descriptors, ends

LIMIT = 20.0  # far more than anything here takes, on a busy machine too


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child(OBEDIENT)
    yield made
    made.close()


def value(child: Child, do: str, limit: float = LIMIT) -> object:
    return child.request({"do": do}, limit)["value"]


def crash(child: Child, do: str, limit: float = LIMIT) -> CrashedError:
    """The error of a request after which the process is gone, and waited for."""
    with pytest.raises(CrashedError) as caught:
        value(child, do, limit)
    assert child.closed
    with pytest.raises(ChildProcessError):
        os.waitpid(child.process.pid, os.WNOHANG)
    return caught.value


def test_requests_are_answered_one_after_the_other(child: Child) -> None:
    assert [value(child, f"reply({number} + 1)") for number in range(3)] == [1, 2, 3]
    assert value(child, "reply([request['limit'], sys.argv[2:]])", 7.5) == [7.5, sys.path]
    assert not child.busy


def test_the_process_gets_one_descriptor_and_no_ctrl_c(child: Child) -> None:
    listing = value(child, "reply(sorted(int(name) for name in os.listdir('/proc/self/fd')))")
    socket = value(child, "reply(channel.fileno())")
    assert isinstance(listing, list)
    assert set(listing) > {0, 1, 2, socket}
    assert len(listing) == 5  # the fifth is the listing's own
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)


def test_the_process_cannot_read_what_is_typed() -> None:
    typed, typing = os.pipe()
    before = os.dup(0)
    os.dup2(typed, 0)
    child = Child(OBEDIENT)
    os.dup2(before, 0)
    assert value(child, "reply(os.readlink('/proc/self/fd/0'))") == "/dev/null"
    child.close()
    for descriptor in (typed, typing, before):
        os.close(descriptor)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE", "SIGKILL"])
def test_a_signal_is_named(child: Child, name: str) -> None:
    error = crash(child, f"os.kill(os.getpid(), signal.{name})")
    assert f"was ended by {name}" in str(error)
    assert ("want of memory" in str(error)) is (name == "SIGKILL")
    assert not isinstance(error, HangError)


def test_a_fatal_error_is_told_with_its_innermost_frame(child: Child) -> None:
    error = crash(child, "ctypes.string_at(0)")
    assert "SIGSEGV" in str(error)
    assert "Fatal Python error: Segmentation fault | File" in str(error)
    assert "string_at" in str(error)
    assert "most recent call first" in error.output


def test_an_exit_is_told_with_the_last_lines(child: Child) -> None:
    error = crash(child, "print(*'abcd', sep='\\n\\n', flush=True); os._exit(3)")
    assert str(error) == "the process ended with exit code 3: b | c | d"
    assert error.output == "a\n\nb\n\nc\n\nd\n"


def test_an_answer_counts_that_was_sent_before_the_end(child: Child) -> None:
    child.ask({"do": "reply(1); os._exit(3)"}, LIMIT)
    child.process.wait()
    answer = child.take()
    assert answer is not None
    assert answer["value"] == 1
    assert child.gone


def test_an_answer_counts_that_comes_while_looking(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends after the look for an answer that found none."""
    read = child._read_line

    def read_and_wait() -> tuple[bytes | None, bool]:
        found = read()
        child.process.wait()
        return found

    child.ask({"do": "time.sleep(0.3); reply(1); os._exit(3)"}, LIMIT)
    monkeypatch.setattr(child, "_read_line", read_and_wait)
    assert child.take() is None
    answer = child.take()
    assert answer is not None
    assert answer["value"] == 1


def test_a_hanging_process_is_ended_with_all_that_it_started(child: Child) -> None:
    program = "[sys.executable, '-c', 'import time; time.sleep(100)']"
    grandchild = value(child, f"reply(subprocess.Popen({program}).pid)")
    assert isinstance(grandchild, int)
    assert alive(grandchild)
    start = time.monotonic()
    error = crash(child, "print('thinking', flush=True); time.sleep(100)", limit=0.2)
    assert time.monotonic() - start < LIMIT
    assert isinstance(error, HangError)
    assert str(error).startswith("no answer within 0 s; the process was ended")
    assert ends(grandchild)


def test_what_a_crashed_process_started_is_ended_too(child: Child) -> None:
    program = "[sys.executable, '-c', 'import time; time.sleep(100)']"
    grandchild = value(child, f"reply(subprocess.Popen({program}).pid)")
    assert isinstance(grandchild, int)
    crash(child, "os._exit(1)")
    assert ends(grandchild)


@pytest.mark.parametrize(
    "line", ["no JSON", "[1]", "3", "{}", '{"serial": 99, "value": 1}', "\\x00\\x00", '{"serial": "'],
)  # fmt: skip
def test_nonsense_is_no_answer(child: Child, line: str) -> None:
    error = crash(child, f"send({line!r}.encode().decode('unicode_escape'))")
    assert "something else than an answer" in str(error)


def test_an_answer_has_an_end(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_BYTES", 1 << 20)
    error = crash(child, "while True: channel.sendall(b'x' * 65536)")
    assert "something else than an answer" in str(error)


def test_megabytes_of_output_disturb_nobody(child: Child) -> None:
    assert value(child, "print('x' * (5 << 20), flush=True); reply('done')") == "done"
    error = crash(child, "print('last', flush=True); os._exit(1)")
    assert len(error.output) <= process.OUTPUT_BYTES
    assert str(error).endswith("| last") or str(error).endswith(": last")


def test_output_without_end_is_a_hang(child: Child) -> None:
    error = crash(child, "while True: os.write(1, b'x' * 4095 + bytes([10]))", limit=0.5)
    assert isinstance(error, HangError)
    assert len(error.output) <= process.OUTPUT_BYTES


def test_a_process_may_close_what_it_prints_to(child: Child) -> None:
    assert len(child.sources()) == 2
    assert value(child, "os.close(1); os.close(2); time.sleep(0.2); reply(1)") == 1
    assert len(child.sources()) == 1  # or waiting for it would not wait
    assert value(child, "reply(2)") == 2


def test_a_process_that_hangs_up_is_ended(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "EXIT_SECONDS", 0.1)
    error = crash(child, "channel.shutdown(socket.SHUT_RDWR); time.sleep(100)")
    assert str(error) == "the process closed its connection"


def test_the_end_shows_although_another_holds_the_socket(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "POLL_SECONDS", 0.05)
    start = time.monotonic()
    error = crash(child, "os._exit(5) if os.fork() else time.sleep(100)")
    assert "exit code 5" in str(error)
    assert time.monotonic() - start < LIMIT / 2


def test_a_process_that_ended_idle_is_gone(child: Child) -> None:
    assert value(child, "reply(1)") == 1
    assert not child.gone
    os.kill(child.process.pid, 9)
    assert ends(child.process.pid)
    assert child.gone
    assert child.closed


def test_asking_a_process_that_has_ended_tells_so(child: Child) -> None:
    os.kill(child.process.pid, 9)
    assert ends(child.process.pid)
    assert "SIGKILL" in str(crash(child, "reply(1)"))


def test_an_interrupted_wait_ends_the_process(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(children: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        value(child, "time.sleep(100)")
    assert child.closed
    assert not alive(child.process.pid)


def test_closing_lets_an_idle_process_end_by_itself(child: Child) -> None:
    value(child, "reply(1)")
    child.close()
    assert child.process.returncode == 0
    child.close()
    child.kill()


def test_closing_ends_a_busy_process_at_once(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "EXIT_SECONDS", 1000.0)
    child.ask({"do": "time.sleep(100)"}, LIMIT)
    child.close()
    assert child.process.returncode == -9


def test_closing_waits_for_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "EXIT_SECONDS", 0.1)
    stubborn = Child("import time; time.sleep(100)")
    stubborn.close()
    assert stubborn.process.returncode == -9


def test_nothing_is_left_open() -> None:
    before = descriptors()
    for do in ("reply(1)", "os._exit(1)", "send('nonsense')"):
        child = Child(OBEDIENT)
        child.ask({"do": do}, LIMIT)
        try:
            child.wait()
        except CrashedError:
            assert child.closed
        child.close()
    assert descriptors() == before


def test_a_python_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TuningError, match="no process can be started"):
        Child(OBEDIENT)
    assert descriptors() == before
