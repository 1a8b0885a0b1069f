"""`faops daemon run`, `start`, `stop` and `install`: what they hand on, and what they say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faops.daemon import start, systemd
from faops.daemon.lock import Holder, RunningError
from faops.errors import DaemonError, NotRunningError
from tests.cli.conftest import Faops
from tests.cli.support import document, refused

HOLDER = Holder(4711, "2026-01-31T11:00:00Z", "/run/faops/daemon.sock", "0.1.0", "boot:1")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What start() and stop() were called with; neither does anything."""
    made: list[Any] = []

    def noting(*arguments: Any, **named: Any) -> Holder:
        made.append((*arguments, *named.values()))
        return HOLDER

    monkeypatch.setattr(start, "start", noting)
    monkeypatch.setattr(start, "stop", noting)
    return made


# ------------------------------------------------------------------------------------------ run


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options with which the daemon would have run; it ends with exit code 7."""
    from faops.daemon import service

    seen: list[Any] = []
    monkeypatch.setattr(service, "run", lambda given: seen.append(given) or 7)
    return seen


def test_run_hands_the_options_on_and_the_exit_code_back(faops: Faops, options: list[Any]) -> None:
    from faops.daemon.service import Options

    assert faops("daemon", "run").exit_code == 7
    every = ("--http", "0.0.0.0:8741", "--allow-remote", "--no-idle-gate", "--log-level", "debug", "--json")
    assert faops("daemon", "run", *every).exit_code == 7
    assert options == [
        Options(),
        Options(http="0.0.0.0:8741", allow_remote=True, idle_gate=False, log_level="debug", json_log=True),
    ]


def test_run_refuses(faops: Faops, options: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    refused(faops("daemon", "run", "--allow-remote"), "--http", code=2)
    refused(faops("daemon", "run", "--http", "all"), "'all'", code=2)
    refused(faops("daemon", "run", "--log-level", "loud"), "loud", code=2)
    assert options == []

    def taken(given: Any) -> int:
        raise RunningError(HOLDER)

    monkeypatch.setattr("faops.daemon.service.run", taken)
    refused(faops("daemon", "run"), "already runs", "pid 4711", "faops daemon stop")


# ------------------------------------------------------------------------------------------ start and stop


def test_start(faops: Faops, calls: list[Any]) -> None:
    done = faops("daemon", "start")
    assert done.stdout == "the daemon runs: pid 4711, socket /run/faops/daemon.sock\n"
    every = ("--http", "127.0.0.1:1", "--log-level", "debug", "--no-idle-gate", "--wait", "2m", "--json")
    assert document(faops("daemon", "start", *every))["pid"] == 4711
    assert faops("daemon", "start", "--http", "10.0.0.1:1", "--allow-remote").exit_code == 0
    assert calls == [
        ([], 30.0),
        (["--http", "127.0.0.1:1", "--log-level", "debug", "--no-idle-gate"], 120.0),
        (["--http", "10.0.0.1:1", "--allow-remote"], 30.0),
    ]
    refused(faops("daemon", "start", "--allow-remote"), "--http", code=2)


def test_start_fails(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(arguments: list[str], seconds: float) -> Holder:
        raise DaemonError("the daemon has ended with exit code 1:\nno room")

    monkeypatch.setattr(start, "start", ended)
    refused(faops("daemon", "start"), "exit code 1:\nno room")


def test_start_gives_every_option_in_a_form_that_run_takes(faops: Faops, calls: list[Any], options: list[Any]) -> None:
    """What is handed on are words for `faops daemon run`."""
    every = ("--http", "10.0.0.1:1", "--allow-remote", "--log-level", "debug", "--no-idle-gate")
    faops("daemon", "start", *every)
    assert faops("daemon", "run", *calls[0][0]).exit_code == 7
    assert faops("daemon", "run", *every).exit_code == 7
    assert options[0] == options[1]


def test_stop(faops: Faops, calls: list[Any]) -> None:
    assert faops("daemon", "stop").stdout == "the daemon has ended (pid 4711)\n"
    assert document(faops("daemon", "stop", "--kill", "--wait", "1m", "--json"))["pid"] == 4711
    assert calls == [(15.0, False), (60.0, True)]


def test_stop_where_none_runs(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(faops("daemon", "stop"), "no daemon runs")

    def none(seconds: float, kill: bool) -> Holder:
        raise NotRunningError("no daemon runs")

    monkeypatch.setattr(start, "stop", none)
    refused(faops("daemon", "stop", "--kill"), "no daemon runs")


# ------------------------------------------------------------------------------------------ install


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where units would lie, on a machine with systemd."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("shutil.which", lambda name, *more: f"/bin/{name}")
    return tmp_path / "config/systemd/user"


def test_install_and_remove(faops: Faops, units: Path) -> None:
    first = faops("daemon", "install")
    assert first.exit_code == 0, first.output
    service, socket = units / "faops.service", units / "faops.socket"
    assert service.read_text() == systemd.service_unit() and socket.read_text() == systemd.socket_unit()
    assert first.stdout.splitlines() == [
        f"written: {service}",
        f"written: {socket}",
        "next:",
        "  systemctl --user daemon-reload",
        "  systemctl --user enable --now faops.service",
    ]
    assert faops("daemon", "install").stdout.startswith(f"kept as it is: {service}\n")
    gone = faops("daemon", "install", "--remove").stdout.splitlines()
    assert gone[:3] == [f"removed: {service}", f"removed: {socket}", "next:"]
    assert not list(units.iterdir())
    assert faops("daemon", "install", "--remove").stdout == "there are no units to remove\n"


def test_install_elsewhere_as_json(faops: Faops, units: Path, tmp_path: Path) -> None:
    shown = document(faops("daemon", "install", "--user-dir", str(tmp_path), "--json"))
    paths = [str(tmp_path / name) for name in ("faops.service", "faops.socket")]
    assert shown["files"] == [{"path": path, "written": True} for path in paths]
    assert shown["commands"][0] == "systemctl --user daemon-reload" and shown["systemd"] is True
    assert document(faops("daemon", "install", "--user-dir", str(tmp_path), "--remove", "--json"))["removed"] == paths
    assert not units.exists()


def test_an_edited_unit_is_kept_without_force(faops: Faops, units: Path) -> None:
    faops("daemon", "install")
    service = units / "faops.service"
    service.write_text(service.read_text() + "Nice=19\n")
    refused(faops("daemon", "install"), "faops.service was edited", "--force")
    refused(faops("daemon", "install", "--remove"), "faops.service was edited", "--force")
    assert "Nice=19" in service.read_text()
    assert faops("daemon", "install", "--force").exit_code == 0
    assert service.read_text() == systemd.service_unit()


def test_print_writes_nothing(faops: Faops, units: Path) -> None:
    done = faops("daemon", "install", "--print")
    assert "# faops.service\n" in done.stdout and systemd.socket_unit() in done.stdout
    shown = document(faops("daemon", "install", "--print", "--json"))
    assert shown["units"] == {"faops.service": systemd.service_unit(), "faops.socket": systemd.socket_unit()}
    refused(faops("daemon", "install", "--print", "--remove"), "choose one", code=2)
    assert not units.exists()


def test_install_without_systemd(faops: Faops, units: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, *more: None)
    said = faops("daemon", "install").stdout
    assert "no systemctl here" in said and "faops daemon start" in said and "daemon-reload" not in said
    assert document(faops("daemon", "install", "--json"))["systemd"] is False
