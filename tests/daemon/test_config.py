"""The settings as the daemon reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from faops import settings
from faops.daemon import config
from faops.daemon.config import Config
from faops.daemon.gate.window import Window
from faops.errors import SettingsError

WRITTEN = """\
daemon_idle_gate: off
daemon_idle_seconds: 2
daemon_window: 22:00-06:00
daemon_busy_cores: 1.5
daemon_busy_percent: 7
daemon_yield_seconds: 0
daemon_attempts: 9
daemon_http: "[::1]:8080"
"""


def write(text: str) -> Path:
    path = Path(os.environ["FAOPS_CONFIG"])
    path.write_text(text)
    return path


def test_the_defaults_are_those_of_the_settings() -> None:
    assert config.load() == Config()
    assert Config().as_dict() == {
        name.removeprefix("daemon_"): setting.default
        for name, setting in settings.SETTINGS.items()
        if name.startswith("daemon_")
    }


def test_every_setting_is_read() -> None:
    write(WRITTEN)
    assert config.load() == Config(
        idle_gate=False,
        idle_seconds=2.0,
        window=Window(22 * 60, 6 * 60),
        busy_cores=1.5,
        busy_percent=7.0,
        yield_seconds=0.0,
        attempts=9,
        http=("::1", 8080),
    )


def test_as_it_would_be_written() -> None:
    write(WRITTEN)
    shown = config.load().as_dict()
    assert json.loads(json.dumps(shown)) == shown
    write("".join(f"daemon_{name}: {json.dumps(value)}\n" for name, value in shown.items()))
    assert config.load().as_dict() == shown
    write("daemon_http: localhost:80\n")
    assert config.load().as_dict()["http"] == "localhost:80"


def test_the_environment_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    write(WRITTEN)
    monkeypatch.setenv("FAOPS_DAEMON_ATTEMPTS", "2")
    assert config.load().attempts == 2


def test_a_changed_file_is_read_again() -> None:
    path = write("daemon_attempts: 4\n")
    assert config.load().attempts == 4
    write("daemon_attempts: 5\n")
    os.utime(path, (1, 1))
    assert config.load().attempts == 5


def test_nonsense_is_refused() -> None:
    write("daemon_window: noon\n")
    with pytest.raises(SettingsError, match="daemon_window: 'noon': expected hours of the day"):
        config.load()
