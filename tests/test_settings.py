"""What settings accept, and what they say of the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faops import settings
from faops.errors import SettingsError


def write(name: str, text: str) -> None:
    """A faops.yaml that gives a setting a value, in quotes where YAML needs them."""
    quoted = f'"{text}"' if text in ("", "localhost:") or text.startswith("[::") else text
    Path(os.environ["FAOPS_CONFIG"]).write_text(f"{name}: {quoted}\n")


ACCEPTED: list[tuple[str, str, Any]] = [
    ("state_dir", "/var/lib/faops", "/var/lib/faops"),
    ("runtime_dir", "~/run", "~/run"),
    ("daemon_idle_gate", "off", False),
    ("daemon_idle_seconds", "0", 0.0),
    ("daemon_idle_seconds", "1.5", 1.5),
    ("daemon_idle_seconds", "1e3", 1000.0),
    ("daemon_window", "22:00-06:00", "22:00-06:00"),
    ("daemon_window", "9:00 - 17:30", "09:00-17:30"),
    ("daemon_window", "", ""),
    ("daemon_window", "off", ""),
    ("daemon_busy_cores", "2", 2.0),
    ("daemon_busy_percent", "0", 0.0),
    ("daemon_busy_percent", "100", 100.0),
    ("daemon_yield_seconds", "0.25", 0.25),
    ("daemon_attempts", "1", 1),
    ("daemon_http", "127.0.0.1:8080", "127.0.0.1:8080"),
    ("daemon_http", "[::1]:0", "[::1]:0"),
    ("daemon_http", "gpu-7.example:65535", "gpu-7.example:65535"),
    ("daemon_http", "", ""),
    ("daemon_http", "no", ""),
]

REFUSED = [
    *[
        (name, value, "expected a number, 0 or more")
        for name in ("daemon_idle_seconds", "daemon_busy_cores", "daemon_yield_seconds")
        for value in ("-1", "nan", "inf", "1e999", "soon", "true", "[1, 2]")
    ],
    *[("daemon_busy_percent", value, "expected a percentage, 0 to 100") for value in ("-0.1", "100.5", "nan", "5%")],
    *[("daemon_attempts", value, "expected a whole number, 1 or more") for value in ("0", "-1", "2.0", "x", "true")],
    *[("daemon_idle_gate", value, "expected 0 or 1") for value in ("2", "maybe")],
    ("daemon_window", "22:00", "expected hours of the day such as 22:00-06:00"),
    ("daemon_window", "06:00-06:00", "two different hours"),
    ("daemon_window", "22:00-30:00", "from 00:00 to 24:00"),
    *[
        ("daemon_http", value, "expected host:port, such as 127.0.0.1:8080")
        for value in (
            "8080",
            "localhost",
            "localhost:",
            ":80",
            "::1:80",
            "a b:80",
            "http://a:80",
            "a:8x",
            "a:-1",
            "a:1:2",
        )
    ],
    ("daemon_http", "127.0.0.1:65536", "from 0 to 65535"),
]


@pytest.mark.parametrize(("name", "text", "value"), ACCEPTED)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_what_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any, source: str) -> None:
    if source == "file":
        monkeypatch.delenv(settings.SETTINGS[name].variable, raising=False)
        write(name, text)
    else:
        monkeypatch.setenv(settings.SETTINGS[name].variable, text)
    assert settings.resolve(name) == settings.Value(value, source)
    assert type(settings.get(name)) is type(settings.SETTINGS[name].default)


@pytest.mark.parametrize(("name", "text", "words"), REFUSED)
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str, words: str) -> None:
    variable = settings.SETTINGS[name].variable
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as raised:
        settings.get(name)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{variable}={text!r}: ")
    monkeypatch.delenv(variable)
    write(name, text)
    with pytest.raises(SettingsError) as raised:
        settings.get(name)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{os.environ['FAOPS_CONFIG']}: {name}: ")


@hypothesis.settings(max_examples=50)
@given(st.text())
def test_any_text_is_a_value_or_refused(text: str) -> None:
    for setting in settings.SETTINGS.values():
        try:
            value = setting.parse(text)
        except ValueError:
            continue
        assert setting.parse(str(value)) == value


@hypothesis.settings(max_examples=50)
@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_can_be_said(host: Any, port: int) -> None:
    said = f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
    assert settings.split_address(said) == (str(host), port)


def test_a_file_that_is_no_text() -> None:
    Path(os.environ["FAOPS_CONFIG"]).write_bytes(b"daemon_window: \xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.get("daemon_window")


def test_reading_a_window_brings_no_torch() -> None:
    program = "import sys; from faops import settings; print(settings.get('daemon_window'), 'torch' in sys.modules)"
    environment = {**os.environ, "FAOPS_DAEMON_WINDOW": "1:00-2:00"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["01:00-02:00", "False"]
