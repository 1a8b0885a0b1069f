"""Ctrl-C during `faops tune`, and `faops tune --resume`: nothing that was measured is lost or measured twice."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faops_cli.tune.run import Tally, Wishes

from faops.autotune import tuner
from faops.autotune.cache import TuningCache
from faops.autotune.tuner.events import Event
from tests.autotune.support import PROBLEM
from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, read_terminal

WIDE = "sq=256,h=2,d=32,softcap=1,dtype=float32"  # a dozen configs of one kernel: some seconds


def journalled() -> list[str]:
    """The timings that are written down so far; a journal begins with one line about the problem."""
    journals = list(Path(os.environ["FAOPS_CACHE_DIR"]).rglob("journal/*.jsonl"))
    return [line for path in journals for line in path.read_text().splitlines()[1:]]


def heed_ctrl_c() -> None:
    """These tests may run in the background, where a shell lets all programs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_keeps_every_timing_and_resume_goes_on(faops: Faops) -> None:
    """A real process with a terminal of its own, as a person has it."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "faops_cli", "tune", "--shape", WIDE, "--shape", TINY]
    process = subprocess.Popen(
        command, stdout=slave, stderr=slave, stdin=slave, env=env, start_new_session=True, preexec_fn=heed_ctrl_c
    )
    os.close(slave)
    end = time.monotonic() + 60
    while len(journalled()) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = read_terminal(master)
    assert process.wait(timeout=60) == 130
    kept = journalled()
    assert len(kept) >= 3
    assert "\x1b" in text
    assert "[1/2] forward float32 b1 256x256" in text
    assert "best so far" in text
    assert f"0 of 2 problems are tuned and stored, and {len(kept)} timings of the next one are kept" in text
    assert "go on with: faops tune --resume" in text
    assert "Traceback" not in text

    resumed = document(faops("tune", "--resume", "--json"))
    wide, tiny = resumed["problems"]
    (entry,) = [entry for entry in TuningCache().entries() if entry.key == wide["key"]]
    assert entry.measurements - wide["measurements"] == len(kept)
    assert tiny["status"] == "tuned"
    assert journalled() == []
    assert document(faops("tune", "--resume", "--json"))["problems"] == []


def test_nothing_to_resume(faops: Faops) -> None:
    result = faops("tune", "--resume")
    assert result.exit_code == 0
    assert result.stdout.startswith("nothing to resume: no run was interrupted on ")
    faops("tune", "--shape", TINY)  # a run that came to its end leaves nothing
    assert "nothing to resume" in faops("tune", "--resume").stdout


def interrupted_after(*events: Event) -> Any:
    """A tuner that sends these events and is interrupted then."""

    def tune(*_: object, on_event: Any, **__: object) -> None:
        for event in events:
            on_event(event)
        raise KeyboardInterrupt

    return tune


STARTED = Event("problem_started", PROBLEM, 0, 2)
MEASURED = Event("measured", PROBLEM, 0, 2, done=7, planned=9, best=1.0)
DONE = Event("problem_done", PROBLEM, 0, 2, done=9, planned=9, best=1.0)
WARM = Event("warm", PROBLEM, 1, 2)


@pytest.mark.parametrize(
    ("events", "left", "words"),
    [
        ((), [], "nothing was measured yet; the same command begins again"),
        ((STARTED, MEASURED), [PROBLEM], "stored, and 7 timings of the next one are kept; go"),
        ((STARTED, MEASURED, DONE), [PROBLEM], "1 of 2 problems are tuned and stored; go on with: faops tune --resume"),
        ((STARTED, MEASURED), [], "what was measured could not be written to"),
        ((STARTED, MEASURED, DONE, WARM), [], "all problems were tuned already"),
    ],
)  # fmt: skip
def test_what_an_interrupt_says(
    faops: Faops, monkeypatch: pytest.MonkeyPatch, events: tuple[Event, ...], left: list[object], words: str
) -> None:
    monkeypatch.setattr(tuner, "tune", interrupted_after(*events))
    monkeypatch.setattr(tuner, "unfinished", lambda *_: left)
    result = faops("tune", "--shape", TINY, "--shape", "sq=8,h=2,d=8")
    assert result.exit_code == 130
    assert words in result.stderr
    assert result.stderr.endswith("interrupted\n")


def test_tally_counts_only_the_problem_in_work() -> None:
    tally = Tally(total=2)
    for event in (STARTED, MEASURED, DONE):
        tally.note(event)
    assert (tally.finished, tally.timings, tally.begun) == (1, 0, True)


def wishes(**changes: Any) -> Wishes:
    values: dict[str, Any] = {
        "workload": ["--model", "gpt2"], "device": None, "force": False, "time_budget": None, "strategy": "halving",
        "resume": False, "isolate": True, "report": None, "as_json": False,
    }  # fmt: skip
    return Wishes(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "faops tune --resume"),
        ({"force": True}, "faops tune --resume"),  # the run has written down that it measures anew
        ({"device": "cuda:1", "strategy": "random"}, "faops tune --resume --device cuda:1 --strategy random"),
        ({"isolate": False, "time_budget": 90.0}, "faops tune --resume --no-isolate --time-budget 90"),
        ({"report": Path("my report.html")}, "faops tune --model gpt2 --resume --report 'my report.html'"),
    ],
)
def test_command_that_goes_on(changes: dict[str, Any], command: str) -> None:
    assert wishes(**changes).resuming_command() == command


def test_command_that_goes_on_names_the_workload_as_it_was_given(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "tune", interrupted_after(STARTED))
    monkeypatch.setattr(tuner, "unfinished", lambda *_: [PROBLEM])
    path = Path(os.environ["FAOPS_CACHE_DIR"]).parent / "r.html"
    model = ("--model", "gpt2", "--prompt", "16", "--prompt", "32", "--kv-cache")
    result = faops("tune", *model, "--report", str(path))
    assert (
        f"faops tune --model gpt2 --prompt 16 --prompt 32 --kv-cache --resume --no-isolate --report {path}"
        in result.stderr
    )
    assert not path.exists()
    result = faops("tune", "--shape", TINY, "--shape", "sq=8,h=2,d=8", "--report", str(path))
    assert f"faops tune --shape {TINY} --shape sq=8,h=2,d=8 --resume" in result.stderr
    result = faops("tune", "--resume", "--report", str(path))
    assert f"faops tune --resume --no-isolate --report {path}" in result.stderr
