"""The handle of a worker: asking, pausing, and what it tells of a worker that crashes, hangs or talks nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faops import processes
from faops.daemon import child as child_module
from faops.daemon.child import WorkerChild, WorkerError, WorkerGoneError
from faops.daemon.jobs import Task
from faops.errors import DaemonError

from .obedient import JOB, LIMIT, OBEDIENT, TASK, assert_reaped, descriptors, told_to, until, with_child


def death(words: str, **options: Any) -> WorkerGoneError:
    """The error of a request after which the worker is gone, which the next request tells as well."""

    async def body(child: WorkerChild) -> WorkerGoneError:
        with pytest.raises(WorkerGoneError) as caught:
            await child.ask(words, **options)
        assert child.gone
        with pytest.raises(WorkerGoneError) as again:
            await child.ask("reply()")
        assert str(again.value) == str(caught.value)
        return caught.value

    return with_child(body)


# ----------------------------------------------------------------------------------------------------------- answers


def test_requests_are_answered_one_after_the_other() -> None:
    async def body(child: WorkerChild) -> None:
        assert await child.ask("reply(request['a'] + 1)", a=1) == 2
        assert await asyncio.gather(*(child.ask(f"reply({number})") for number in range(3))) == [0, 1, 2]
        assert await child.ask("reply()") is None
        assert not child.gone

    with_child(body)


def test_the_worker_says_what_is_wrong() -> None:
    async def body(child: WorkerChild) -> None:
        with pytest.raises(WorkerError, match=r"^model: got 'x'$") as caught:
            await child.ask("fail('PlanError', \"model: got 'x'\")")
        assert caught.value.kind == "PlanError"
        assert isinstance(caught.value, DaemonError)
        assert await child.ask("reply(1)") == 1

    with_child(body)


def test_a_job_is_told_whole_and_events_come_before_its_result() -> None:
    async def body(child: WorkerChild) -> None:
        events: list[dict[str, Any]] = []
        words = "tell(kind='a'); tell(kind='b', done=2); reply(request)"
        said = await child.tune(replace(told_to(words), forced=True), events.append)
        assert events == [{"kind": "a"}, {"kind": "b", "done": 2}]
        assert Task.from_dict(said["task"]) == replace(TASK, words=words)
        assert (said["do"], said["forced"]) == ("tune", True)
        assert (await child.tune(JOB, events.append))["forced"] is False

    with_child(body)


def test_what_an_event_raises_is_the_fault_of_who_asked() -> None:
    async def body(child: WorkerChild) -> None:
        with pytest.raises(ZeroDivisionError):
            await child.tune(told_to("tell(kind='a'); tell(kind='b'); reply()"), lambda event: 1 // 0)
        assert await child.ask("reply(1)") == 1

    with_child(body)


def test_threads_are_told_first() -> None:
    async def run() -> None:
        program = OBEDIENT.replace("        reply()\n", "        print('prepared for', request['threads']); reply()\n")
        child = await WorkerChild.start(threads=3, program=program)
        await child.ask("sys.stdout.flush(); reply()")
        await until(lambda: "prepared" in child.output)
        assert child.output == "prepared for 3\n"
        await child.stop(0.0)

    asyncio.run(run())


def test_the_process_is_of_its_own_session_and_holds_nothing_of_ours() -> None:
    async def body(child: WorkerChild) -> None:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert await child.ask("reply(os.readlink('/proc/self/fd/0'))") == "/dev/null"
        assert await child.ask("reply(len(os.listdir('/proc/self/fd')))") == 5  # with the socket and the listing's own
        assert await child.ask("reply(sys.argv[2:])") == sys.path

    with_child(body)


def test_memory_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(child: WorkerChild) -> None:
        monkeypatch.setattr(processes, "memory_bytes", lambda pid: 5)
        assert child.memory_bytes() == 5
        monkeypatch.setattr(processes, "memory_bytes", lambda pid: 7)
        assert child.memory_bytes() == 5
        child._weighed_at -= child_module.MEMORY_SECONDS
        assert child.memory_bytes() == 7

    with_child(body)


# ------------------------------------------------------------------------------------------------------------- pause


def test_a_pause_is_told_once() -> None:
    async def body(child: WorkerChild) -> None:
        child.go()
        child.pause()
        child.pause()
        child.go()
        child.go()
        child.pause()
        said = await child.ask("reply(controls)")
        assert [control["do"] for control in said] == ["pause", "go", "pause"]

    with_child(body)


def test_a_pause_comes_in_the_middle_of_a_job() -> None:
    async def body(child: WorkerChild) -> None:
        said = await child.tune(told_to("tell(kind='a'); hear(); reply(dict(heard=controls))"), lambda _: child.pause())
        assert said["heard"] == [{"do": "pause"}]

    with_child(body)


def test_a_pause_counts_to_no_limit() -> None:
    async def body(child: WorkerChild) -> None:
        child._heard -= 1000
        assert child._patience(1.0) < 0
        child.pause()
        assert child._patience(1.0) > 0
        child._heard -= 1000
        child.go()
        assert 0 < child._patience(LIMIT) <= LIMIT

    with_child(body)


def test_what_is_sent_is_one_line() -> None:
    async def body(child: WorkerChild) -> None:
        text = "line\nline\u2028\x00é"
        assert await child.ask("reply(request['text'])", text=text) == text
        assert "\n" not in json.dumps(text)

    with_child(body)


# --------------------------------------------------------------------------------------------------------- what fails


def test_a_signal_is_named() -> None:
    assert str(death("os.kill(os.getpid(), signal.SIGTERM)")) == "the process was ended by SIGTERM"


def test_an_exit_is_told_with_the_last_lines() -> None:
    assert str(death("print(*'abcd', sep='\\n\\n', flush=True); os._exit(3)")) == (
        "the process ended with exit code 3: b | c | d"
    )


def test_a_fatal_error_is_told_with_its_innermost_frame() -> None:
    assert "Fatal Python error: Segmentation fault | File" in str(death("ctypes.string_at(0)"))


def test_a_crash_without_a_request_is_noticed() -> None:
    async def body(child: WorkerChild) -> None:
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.gone)
        with pytest.raises(WorkerGoneError, match="SIGKILL"):
            await child.tune(JOB, lambda event: None)

    with_child(body)


def test_an_answer_counts_that_was_sent_before_the_end() -> None:
    async def body(child: WorkerChild) -> None:
        assert await child.ask("reply(1); os._exit(3)") == 1

    with_child(body)


@pytest.mark.parametrize(
    "nonsense", ["no JSON", '{"serial": "1"}', *(pytest.param(text, marks=pytest.mark.full) for text in ("[]", "{}"))]
)
def test_nonsense_ends_it(nonsense: str) -> None:
    error = death(f"send({nonsense!r}); time.sleep(100)")
    assert "something else than an answer" in str(error)


def test_a_line_too_long_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LINE_BYTES", 1000)
    assert "something else than an answer" in str(death("reply('x' * 100_000); time.sleep(100)"))


def test_a_hanging_worker_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "pid"
    words = f"print('thinking', flush=True); open({str(told)!r}, 'w').write(str(start())); time.sleep(100)"
    hanging = lambda child, limit: -1.0 if told.exists() and told.read_text() else 0.01  # noqa: E731
    monkeypatch.setattr(WorkerChild, "_patience", hanging)
    assert str(death(words, limit=7.0)) == "no word of the worker for 7 s; it was ended: thinking"
    assert not processes.alive(int(told.read_text()))


def test_a_worker_that_goes_on_telling_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "SILENCE_LIMIT_SECONDS", 0.4)
    monkeypatch.setattr(child_module, "SILENCE_LIMIT_CALLS", 2.0)

    async def body(child: WorkerChild) -> None:
        left: list[float] = []

        def on_event(event: dict[str, Any]) -> None:
            left.append(child._patience(1000.0))
            child._heard -= 900  # for so long it has said nothing more

        words = "tell(); tell(); tell(); reply({'a': 1})"
        assert await child.tune(told_to(words, call_seconds=500.0), on_event) == {"a": 1}
        assert all(seconds > 900 for seconds in left)
        with pytest.raises(WorkerGoneError, match=r"no word of the worker for 1 s"):
            await child.tune(told_to("time.sleep(100)", call_seconds=0.3), lambda event: None)

    with_child(body)


def test_a_stopped_worker_is_ended() -> None:
    assert "no word" in str(death("os.kill(os.getpid(), signal.SIGSTOP)", limit=0.3))


def test_what_it_prints_is_bounded() -> None:
    async def body(child: WorkerChild) -> None:
        await child.ask("[print('x' * 99) for _ in range(20000)]; reply()")
        with pytest.raises(WorkerGoneError, match=r"exit code 3: x+ \| x+ \| the end$"):
            await child.ask("print('the end', flush=True); os._exit(3)")
        assert len(child.output) == child_module.OUTPUT_BYTES

    with_child(body)


def test_a_program_that_cannot_start_is_told_with_its_last_words() -> None:
    async def start(program: str) -> str:
        with pytest.raises(WorkerGoneError) as caught:
            await WorkerChild.start(program=program)
        return str(caught.value)

    assert asyncio.run(start("import sys; sys.exit('no torch here')")) == (
        "the process ended with exit code 1: no torch here"
    )
    failing = OBEDIENT.replace("        reply()\n", "        fail('RuntimeError', 'no such thread')\n")
    assert asyncio.run(start(failing)) == "no worker can be started: no such thread"


def test_a_start_that_is_cancelled_ends_at_once(tmp_path: Path) -> None:
    words = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    program = OBEDIENT.replace("        reply()\n", f"        {words}\n")
    before = descriptors()

    async def run() -> None:
        starting = asyncio.ensure_future(WorkerChild.start(program=program))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(starting, LIMIT)
        assert_reaped(int((tmp_path / "pid").read_text()))

    asyncio.run(run())
    assert descriptors() == before


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(WorkerGoneError, match=r"no worker can be started: .*No such file"):
        asyncio.run(WorkerChild.start(program=OBEDIENT))
    assert descriptors() == before
