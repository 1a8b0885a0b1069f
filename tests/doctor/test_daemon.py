"""The group daemon where nothing is wrong, and where there is no daemon; what is broken: breakages_of_daemon.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from faops.daemon import paths
from faops.daemon.client import Client
from faops.doctor import daemon, probes
from faops.doctor.check import perform
from faops.errors import DaemonError
from tests.cli.daemon.support import device, job, status
from tests.doctor.breakages_of_daemon import running

CHECKS = (
    daemon.check_package, daemon.check_running, daemon.check_runtime, daemon.check_queue, daemon.check_units,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_never_used() -> None:
    """Nothing is found, nothing is made, and nothing is said to be missing."""
    results = [check() for check in CHECKS]
    assert [result.status for result in results] == ["ok", "skipped", "ok", "skipped", "skipped"]
    assert not paths.runtime_directory(create=False).exists() and not paths.state_directory(create=False).exists()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "installed", lambda name: None)
    result = daemon.check_package()
    assert result.status == "skipped"
    assert "starlette, uvicorn, httpx, prometheus-client" in result.summary and daemon.INSTALL in result.summary


def test_the_extra_is_what_the_package_asks_for() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    named = tomllib.loads(text)["project"]["optional-dependencies"]["daemon"]
    assert sorted(name.split(">=")[0] for name in named) == sorted(daemon.PACKAGES)


def test_a_daemon_at_work() -> None:
    for fake in running():
        fake.answers["GET /v1/status"] = status(jobs={"waiting": 3}, devices=[device(open=False, reason="in use")])
        found = daemon.check_running()
        assert found.status == "ok"
        assert found.summary == f"pid {os.getpid()}, faops 0.1.0, 50 MiB, idle" and found.details == ("cpu: in use",)
        assert daemon.check_queue().summary == "3 problems wait to be tuned"
        assert daemon.check_runtime().status == "ok"


def test_quarantined_jobs_are_told() -> None:
    for fake in running():
        fake.answers["GET /v1/status"] = status(jobs={"quarantined": 1})
        fake.answers["GET /v1/jobs"] = {"jobs": [job(7, "quarantined", message="it hangs")], "next": None}
        result = daemon.check_queue()
        assert result.details == ("job 7, forward float32 b1 7x512 h8/8 d64 causal: it hangs",)
        ((name, _),) = [asked for asked in fake.requests if "/v1/jobs" in asked[0]]
        assert "state=quarantined" in name and "limit=5" in name


def test_a_daemon_that_does_not_answer_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Client) -> None:
        raise DaemonError("the daemon does not answer within 10 s")

    for _ in running():
        monkeypatch.setattr(Client, "status", fail)
        assert daemon.check_running().fix == daemon.RESTART
        assert daemon.check_queue().status == "skipped"


def test_what_a_killed_daemon_leaves_is_none() -> None:
    for _ in running():
        pass
    paths.state_directory().joinpath("holder.json").write_text('{"pid": 1}')
    assert daemon.check_running().status == daemon.check_queue().status == "skipped"


def test_an_unsafe_directory_says_how_to_close_it() -> None:
    directory = paths.runtime_directory()
    directory.chmod(0o770)
    assert daemon.check_runtime().fix == f"chmod 700 {directory}"
    directory.rmdir()
    directory.touch()
    assert daemon.check_runtime().fix == daemon.ELSEWHERE


def test_a_broken_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is told once by each check that needs it, and by the group settings with its line."""
    path = tmp_path / "faops.yaml"
    path.write_text("nonsense: 1\n")
    monkeypatch.setenv("FAOPS_CONFIG", str(path))
    monkeypatch.delenv("FAOPS_RUNTIME_DIR")
    result = daemon.check_runtime()
    assert (result.status, result.fix) == ("fail", "faops doctor settings.values") and "nonsense" in result.summary


def test_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert {check().summary for check in CHECKS} == {"the daemon does not run on Windows"}


def test_no_check_crashes_on_a_strange_daemon() -> None:
    strange: tuple[Any, ...] = (
        {},
        (200, []),
        (500, {}),
        {**status(), "version": None},
        {**status(), "devices": None},
        {**status(), "devices": [{"device": "cpu"}]},
        {**status(), "jobs": [1]},
        {**status(), "jobs": {"waiting": "many"}},
        {**status(), "memory_bytes": "much"},
        {**status(), "jobs": {"quarantined": 1}},
    )
    for fake in running():
        fake.answers["GET /v1/jobs"] = {"jobs": [None, {}]}
        for answer in strange:
            fake.answers["GET /v1/status"] = answer
            found = [finding.result.status for finding in perform(daemon.checks())]
            assert not {"fail", "crashed"} & set(found), answer
            assert "warn" in found, answer


def test_nothing_of_http_is_imported_where_no_daemon_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httpx", "starlette", "uvicorn", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)  # every import of it fails
    assert [finding.result.status for finding in perform(daemon.checks())].count("skipped") == 3
