"""Whether an Ascend NPU is idle, as a made-up npu-smi tells: no NPU is needed, and none has confirmed this."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.daemon.config import Config
from faops.daemon.gate import npu
from faops.daemon.gate.gate import Reading
from faops.daemon.gate.npu import ASK_SECONDS, Npu, Tool, shared
from faops.npu_smi import USE, VISIBLE

from .support import Clock

WORKER, CHILD, OTHER, SERVER = 501, 502, 901, 902
MAPPING = "NPU ID  Chip ID  Chip Logic ID  Chip Name\n2 0 0 Ascend 910B3\n5 0 1 Ascend 910B3\n"


def table(load: str, *pids: int) -> str:
    rows = "".join(f"| 5       0       | {pid}          | python3     | 100       |\n" for pid in pids)
    return (
        "| NPU   Name     | Health        | Power(W) |\n| 2     910B3    | OK            | 91.2     |\n"
        "| 0              | 0000:C1:00.0  | 99  0 / 0 |\n| 5     910B3    | OK            | 91.2     |\n"
        f"| 0              | 0000:C2:00.0  | {load}   0 / 0 |\n"
        "| NPU     Chip    | Process id   | Process name | Process memory(MB)   |\n"
        f"| 2       0       | 4711         | python3      | 100                  |\n{rows}"
    )


class Watched:
    """Torch's second NPU, an npu-smi that prints what it is told, and the sensor."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()
        self.own, self.config = {os.getpid()}, Config()
        self.tool = Tool(self.clock)
        self.sensor = Npu(1, self.tool, self.clock, lambda: True)
        (folder / "mapping").write_text(MAPPING)
        self.tell("0")
        self.program(f"[ $# = 2 ] && cat {folder}/mapping || cat {folder}/table")

    def program(self, text: str) -> None:
        path = self.folder / "npu-smi"
        path.write_text(f"#!/bin/sh\necho x >> {self.folder}/calls\n{text}\n")
        path.chmod(0o755)

    def tell(self, load: str, *pids: int) -> None:
        (self.folder / "table").write_text(table(load, *pids))

    def calls(self) -> int:
        return (self.folder / "calls").read_text().count("x")

    def look(self, after: float = 0.0) -> Reading:
        self.clock.pass_by(after)
        return self.sensor.read(self.own, self.config)

    def answered(self, after: float = ASK_SECONDS) -> Reading:
        """What is said once the question that is due after some seconds is answered."""
        found = self.look(after)
        deadline = time.monotonic() + 30
        while self.tool._question is not None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
            found = self.look()
        return found

    def busy(self, after: float = ASK_SECONDS) -> str:
        return self.answered(after).busy


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = Watched(tmp_path)
    yield found
    found.sensor.close()


def test_until_it_has_answered_nothing_is_known(watched: Watched) -> None:
    unknown = "nobody tells how busy the NPU is: npu-smi has not answered yet; "
    unknown += "or daemon_idle_gate: 0 in faops.yaml tunes regardless"
    deadline = time.monotonic() + 30
    while watched.tool._question is None or watched.tool._question.words != USE:
        assert watched.look().busy == unknown
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert watched.busy(0) == ""


def test_all_use_is_that_of_others(watched: Watched) -> None:
    assert watched.answered() == Reading("", {"others": 0.0, "utilisation": 0.0})
    watched.tell("5", SERVER)
    assert watched.answered() == Reading("", {"others": 1.0, "utilisation": 5.0})
    watched.tell("37", SERVER)
    assert watched.busy() == "other programs use 37 % of the NPU"
    watched.config = Config(busy_percent=40.0)
    assert watched.look().busy == ""


def test_it_is_asked_now_and_then(watched: Watched) -> None:
    watched.answered()
    assert watched.calls() == 2
    for _ in range(15):
        watched.answered(0.25)
    assert watched.calls() == 2
    watched.answered(0.25 * 5)
    assert watched.calls() == 3


def test_while_we_tune_those_count_that_came(watched: Watched) -> None:
    watched.tell("0", SERVER)
    assert watched.busy() == ""
    watched.own = {os.getpid(), WORKER, CHILD}
    watched.tell("95", SERVER, CHILD)
    assert watched.busy() == ""
    watched.tell("95", SERVER, CHILD, OTHER)
    assert watched.busy() == f"pid {OTHER} came to the NPU"
    watched.tell("95", SERVER, CHILD)
    assert watched.busy() == ""


def test_an_answer_about_our_work_is_not_of_others(watched: Watched) -> None:
    watched.own = {os.getpid(), CHILD}
    watched.tell("95", CHILD)
    assert watched.busy() == ""
    watched.own = {os.getpid()}
    for _ in range(18):
        assert watched.look(0.25).busy == ""  # it was asked while we were at work
    watched.tell("NA", CHILD)
    assert watched.busy(0.5) == ""
    watched.tell("0")
    assert watched.busy() == ""
    watched.tell("95")
    assert watched.busy(2 * ASK_SECONDS) == "other programs use 95 % of the NPU"


def test_where_only_others_are_seen_all_use_is_theirs(watched: Watched) -> None:
    """A child of ours lives, but works on another device."""
    watched.own = {os.getpid(), CHILD}
    watched.tell("95", SERVER)
    assert watched.busy() == "other programs use 95 % of the NPU"
    watched.tell("95")
    assert watched.busy() == ""  # it may not be seen yet


def test_where_no_use_is_told_every_process_counts(watched: Watched) -> None:
    watched.tell("NA")
    assert watched.answered() == Reading("", {"others": 0.0})
    watched.tell("NA", OTHER, SERVER)
    assert watched.busy() == f"pid {OTHER}, {SERVER} on the NPU, of which npu-smi tells no use"


def test_in_a_container_one_is_taken_for_ours(watched: Watched) -> None:
    watched.sensor = Npu(1, watched.tool, watched.clock, lambda: False)
    watched.busy()
    watched.own = {os.getpid(), CHILD}
    watched.tell("95", 70001)
    assert watched.busy() == ""
    watched.tell("95", 70001, OTHER)
    assert watched.busy(1.5 + ASK_SECONDS) == f"pid {OTHER} came to the NPU"
    watched.own = {os.getpid()}
    watched.tell("0")
    watched.busy()
    watched.busy(4 * ASK_SECONDS)
    watched.own = {os.getpid(), CHILD}
    watched.tell("95", 70001, OTHER)
    assert watched.busy() == f"one of pid {OTHER}, 70001 is not ours, and in a container nobody tells which"


def test_an_npu_that_it_does_not_know(watched: Watched) -> None:
    watched.sensor = Npu(7, watched.tool, watched.clock, lambda: True)
    assert "npu-smi does not know NPU 7" in watched.busy()
    assert "npu-smi does not know NPU 7" in watched.busy()


def test_all_npus_are_asked_about_together(watched: Watched) -> None:
    watched.tell("37")
    first = Npu(0, watched.tool, watched.clock, lambda: True)
    assert watched.busy() == "other programs use 37 % of the NPU"
    assert first.read(watched.own, watched.config).busy == "other programs use 99 % of the NPU"
    assert watched.calls() == 2
    assert shared() is shared()


def test_npu_smi_is_no_child_that_tunes(watched: Watched) -> None:
    watched.busy()
    watched.tell("95")
    watched.look(ASK_SECONDS)
    question = watched.tool._question
    assert question is not None
    watched.own = {os.getpid(), question.pid}
    watched.look()
    watched.own = {os.getpid()}
    assert watched.busy() == "other programs use 95 % of the NPU"


def test_one_that_fails_is_asked_again(watched: Watched) -> None:
    watched.answered()
    (watched.folder / "table").rename(watched.folder / "kept")
    assert "npu-smi failed" in watched.busy()
    (watched.folder / "kept").rename(watched.folder / "table")
    assert watched.busy() == ""


def test_what_it_prints_before_it_fails_is_not_believed(watched: Watched) -> None:
    watched.answered()
    watched.program(f"cat {watched.folder}/table; exit 1")
    assert "npu-smi failed" in watched.busy()


def test_without_the_tool(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(watched.folder / "nothing"))
    assert "npu-smi cannot be started (No such file or directory)" in watched.look().busy
    monkeypatch.setenv("PATH", path)
    assert "npu-smi cannot be started" in watched.look(ASK_SECONDS - 0.1).busy
    assert watched.busy(0.1) == ""


def test_one_that_hangs_is_ended(watched: Watched) -> None:
    watched.answered()
    watched.program("exec sleep 60")
    watched.look(ASK_SECONDS)
    question = watched.tool._question
    assert question is not None
    assert watched.look(npu.LIMIT_SECONDS - 0.1).busy == ""
    assert "npu-smi failed" in watched.look(0.2).busy
    assert question._process.poll() == -9


def test_nothing_is_left_behind(watched: Watched) -> None:
    watched.program("exec sleep 60")
    watched.look()
    question = watched.tool._question
    assert question is not None
    watched.sensor.close()
    assert question._process.poll() == -9
    watched.sensor.close()
