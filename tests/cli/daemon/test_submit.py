"""`faops daemon submit`: what is sent, what is told of it, and how jobs are followed to their end."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faops_cli.daemon import follow, submit

from tests.cli.conftest import Faops
from tests.cli.daemon.support import Data, FakeDaemon, device, job, refusal, result, running, status
from tests.cli.support import document, read_terminal, refused

SHAPE = "sq=64,h=2,d=16"


def submission(state: str = "expanded", message: str = "", jobs: tuple[int, ...] = (17,)) -> Data:
    return {"id": 3, "state": state, "message": message, "jobs": list(jobs), "created": "2026-01-31T12:00:00.000Z"}


class Script:
    """Gives one answer after the other, and the last again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __call__(self, body: object) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture(autouse=True)
def quick(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for between two looks."""
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "JOBS_A_SECOND", 10000)
    daemon.answers["POST /v1/submissions"] = (202, submission("waiting", jobs=()))
    daemon.answers["GET /v1/submissions/3"] = Script(submission("waiting", jobs=()), submission())
    daemon.answers["GET /v1/jobs/17"] = Script(job(17), job(17, "running"), job(17, "done"))


def sent(daemon: FakeDaemon) -> Any:
    (body,) = daemon.asked("POST /v1/submissions")
    return body


def test_a_shape(faops: Faops, daemon: FakeDaemon) -> None:
    done = faops("daemon", "submit", "--shape", SHAPE, "--shape", "sq=1,h=1,d=8")
    assert (done.exit_code, done.stdout) == (0, "1 problem: job 17\n")
    assert sent(daemon) == {"shapes": [SHAPE, "sq=1,h=1,d=8"]}


def test_a_model_with_options(faops: Faops, daemon: FakeDaemon) -> None:
    options = "--dtype bf16 --batch 2 --prompt 64 --prompt 128 --context 9 --phase decode --page-size 16,32 --packed"
    done = faops("daemon", "submit", "--model", "smollm2-135m", *options.split(), "--device", "cpu", "--force")
    assert done.exit_code == 0, done.output
    assert sent(daemon) == {
        "model": "smollm2-135m",
        "options": {
            "dtype": "bf16", "batch": 2, "prompt": [64, 128], "context": [9], "phases": ["decode"],
            "page_size": [16, 32], "packed": True,
        },
        "device": "cpu",
        "force": True,
    }  # fmt: skip


def test_paths_are_made_absolute(
    faops: Faops, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert faops("daemon", "submit", "--hf-config", "mine/config.json").exit_code == 0
    assert sent(daemon) == {"hf_config": str(tmp_path / "mine/config.json")}


def test_a_plan_keeps_its_lines_and_gets_absolute_paths(faops: Faops, daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    lines = ["# mine", "workloads:", "- hf_config: ./größe  # near", "- {hf_config: '/far', batch: 2}",
             "- hf_config: ~/home", "- model: hf_config", '- hf_config: "a b"']  # fmt: skip
    path.write_text("\n".join(lines), encoding="utf-8")
    assert faops("daemon", "submit", "--plan", str(path)).exit_code == 0
    import yaml

    text = sent(daemon)["plan"]
    assert [entry.get("hf_config") for entry in yaml.safe_load(text)["workloads"]] == [
        f"{tmp_path}/größe", "/far", "~/home", None, f"{tmp_path}/a b",
    ]  # fmt: skip
    shown = text.splitlines()
    assert len(shown) == len(lines) and shown[2].endswith("  # near")
    assert [shown[index] for index in (0, 1, 3, 4, 5)] == [lines[index] for index in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "workloads: 7\n", "workloads: [7, {hf_config: [x]}]\n", "", "\t"])
def test_what_is_no_plan_is_for_the_daemon_to_refuse(
    faops: Faops, daemon: FakeDaemon, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    assert faops("daemon", "submit", "--plan", str(path)).exit_code == 0
    assert sent(daemon) == {"plan": text}


def test_plans_that_cannot_be_sent(faops: Faops, daemon: FakeDaemon, tmp_path: Path) -> None:
    refused(faops("daemon", "submit", "--plan", str(tmp_path / "none.yaml")), "none.yaml cannot be read", "No such")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    refused(faops("daemon", "submit", "--plan", str(tmp_path / "binary")), "binary cannot be read", "utf-8")
    (tmp_path / "large").write_text("#" * (2**18 + 1))
    refused(faops("daemon", "submit", "--plan", str(tmp_path / "large")), "262145 characters", "expected 262144")
    assert daemon.asked("POST") == []


def test_one_workload_at_a_time(faops: Faops, daemon: FakeDaemon) -> None:
    names = ("--model, --hf-config, --shape or --plan",)
    refused(faops("daemon", "submit"), *names, "none was given", code=2)
    refused(faops("daemon", "submit", "--model", "a", "--plan", "b"), *names, "not --model and --plan", code=2)
    refused(faops("daemon", "submit", "--shape", SHAPE, "--batch", "2"), "--batch goes with --model", code=2)
    assert daemon.requests == []


def test_a_misspelt_model_is_told_at_once(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/submissions/3"] = submission("refused", "model: got 'smolm', expected one of ...", ())
    refused(faops("daemon", "submit", "--model", "smolm"), "'smolm'", "expected one of")
    daemon.answers["POST /v1/submissions"] = refusal(422, "shapes[0]: got 'x'")
    refused(faops("daemon", "submit", "--shape", "x"), "shapes[0]: got 'x'")


def test_what_the_daemon_makes_of_it(faops: Faops, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(answer: Data) -> list[str]:
        daemon.answers["GET /v1/submissions/3"] = answer
        return str(faops("daemon", "submit", "--shape", SHAPE).stdout).splitlines()

    assert said(submission(jobs=(4, 5, 6))) == ["3 problems: jobs 4 to 6"]
    assert said(submission(jobs=(4, 6))) == ["2 problems: jobs 4, 6"]
    assert said(submission("expanded", "1 was refused", ())) == ["nothing to tune", "1 was refused"]
    monkeypatch.setattr(submit, "EXPANSION_SECONDS", 0.0)
    assert "submission 3 is kept" in said(submission("waiting", jobs=()))[0]


def test_waiting_to_the_end(faops: Faops, daemon: FakeDaemon) -> None:
    busy = status(state="waiting", jobs={"waiting": 1}, devices=[device(open=False, reason="idle for 3 of 30 s")])
    later = status(state="waiting", jobs={"waiting": 1}, devices=[device(open=False, reason="idle for 4 of 30 s")])
    daemon.answers["GET /v1/jobs/17"] = Script(job(17), job(17), job(17, "running"), job(17, "done"))
    daemon.answers["GET /v1/status"] = Script(busy, later, status(state="tuning", running=[running()]))
    done = faops("daemon", "submit", "--shape", SHAPE, "--wait")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "1 problem: job 17",
        "waiting: idle for 3 of 30 s",
        "[1/1] forward float32 b1 17x512 h8/8 d64 causal: 1.23x by torch.blockwise_forward",
    ]
    assert lines[-1].endswith("torch.sdpa_forward 4.3 ms  torch.blockwise_forward 3.5 ms  1.23x")


def test_waiting_for_several_of_which_some_fail(faops: Faops, daemon: FakeDaemon) -> None:
    daemon.answers["GET /v1/submissions/3"] = submission(jobs=(1, 2, 3, 4))
    kept = job(2, "done", result=result(is_default=True))
    failed = job(4, "done", result={"status": "failed", "message": "no kernel can run it"})
    for one in (job(1, "done"), kept, job(3, "quarantined", message="it hangs"), failed):
        daemon.answers[f"GET /v1/jobs/{one['id']}"] = one
    done = faops("daemon", "submit", "--shape", SHAPE, "--wait")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[3].startswith("[3/4] forward float32 b1 3x512") and lines[3].endswith(": quarantined: it hangs")
    table = lines[-4:]
    assert table[1].split()[-3:] == ["the", "default", "-"] and "quarantined" in table[2]
    assert "no kernel can run it" in table[3]


def test_waiting_as_json(faops: Faops, daemon: FakeDaemon) -> None:
    result_ = faops("daemon", "submit", "--shape", SHAPE, "--wait", "--json")
    shown = document(result_)
    assert shown["submission"] == submission() and [one["state"] for one in shown["jobs"]] == ["done"]
    assert "[1/1]" in result_.stderr
    assert document(faops("daemon", "submit", "--shape", SHAPE, "--json"))["jobs"] == []


def test_the_daemon_ends_meanwhile(faops: Faops, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    from faops.daemon import client
    from faops.errors import NotRunningError

    def gone(self: object) -> None:
        raise NotRunningError("gone")

    monkeypatch.setattr(client.Client, "status", gone)
    done = faops("daemon", "submit", "--shape", SHAPE, "--wait")
    assert done.exit_code == 1
    assert done.stderr == "error: the daemon has ended; 1 of 1 jobs were not done, and stay in its queue\n"


def test_ctrl_c_while_waiting(daemon: FakeDaemon) -> None:
    """On a terminal, where the running job is shown in a line that is drawn again and again."""
    daemon.answers["GET /v1/jobs/17"] = job(17, "running")
    daemon.answers["GET /v1/status"] = status(state="tuning", running=[running()])
    master, slave = pty.openpty()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from faops_cli.main import command_line\n"
        f"command_line.main(['daemon', 'submit', '--shape', '{SHAPE}', '--wait'], prog_name='faops')\n"
    )
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, stdin=slave, env=env)
    os.close(slave)
    text = ""
    while "12 of 59 timings" not in text:
        text += os.read(master, 65536).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    text += read_terminal(master)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in text and "interrupted" in text
