"""Which variables a daemon gets from whoever starts or installs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faops.daemon import environment


def detached() -> dict[str, str]:
    """Without what pytest sets."""
    return {name: value for name, value in environment.detached().items() if not name.startswith("PYTEST_")}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)


def test_a_detached_process_is_nobodys_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "JOURNAL_STREAM", "PATH", "EDITOR"):
        monkeypatch.setenv(name, "x")
    assert detached() == {"PATH": "x", "EDITOR": "x"}


def test_paths_hold_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/ada")
    for name, value in {
        "FAOPS_CACHE_DIR": "cache", "FAOPS_STATE_DIR": "/state", "FAOPS_RUNTIME_DIR": "",
        "FAOPS_CONFIG": "~/faops.yaml", "PYTHONPATH": "src:/lib", "LD_LIBRARY_PATH": "", "FAOPS_BACKEND": "torch",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert detached() == {
        "HOME": "/users/ada", "FAOPS_CACHE_DIR": str(tmp_path / "cache"), "FAOPS_STATE_DIR": "/state",
        "FAOPS_RUNTIME_DIR": "", "FAOPS_CONFIG": "/users/ada/faops.yaml", "PYTHONPATH": f"{tmp_path / 'src'}:/lib",
        "LD_LIBRARY_PATH": "", "FAOPS_BACKEND": "torch",
    }  # fmt: skip


def test_a_unit_passes_on_settings_and_where_things_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "FAOPS_DAEMON_WINDOW", "FAOPS_CACHE_DIR", "ASCEND_HOME_PATH", "CUDA_HOME"):
        monkeypatch.setenv(name, "x")
    for name in ("FAOPS_TEST_SEED", "FAOPS_DEBUG", "PATH", "AWS_SECRET", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, "x")
    assert list(environment.for_units().items()) == [
        ("ASCEND_HOME_PATH", "x"), ("CUDA_HOME", "x"), ("FAOPS_CACHE_DIR", str(tmp_path / "x")),
        ("FAOPS_DAEMON_WINDOW", "x"), ("XDG_CACHE_HOME", "x"),
    ]  # fmt: skip
