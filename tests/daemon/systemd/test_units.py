"""The units: their text, and what install() does with those on disk."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.daemon import paths, systemd
from faops.daemon.systemd import units
from faops.errors import DaemonError

NAMES = ("faops.service", "faops.socket")


@pytest.fixture
def directory(private_daemon: Path) -> Path:
    """Where units are installed."""
    return private_daemon / "config" / "systemd" / "user"


def read(text: str) -> configparser.RawConfigParser:
    """A unit's settings."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(text)
    return parser


def unquoted(text: str, dollars: bool = False) -> list[str]:
    """The words of a setting as systemd.syntax(7) reads them, with specifiers and variables resolved."""
    words, word, quote, escaped = [], "", False, False
    for char in text + " ":
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quote = not quote
        elif char == " " and not quote:
            words, word = [*words, word], ""
        else:
            word += char
    assert not quote and not escaped
    for word in words:
        assert "%" not in word.replace("%%", "") and (not dollars or "$" not in word.replace("$$", ""))
    words = [word.replace("%%", "%") for word in words]
    return [word.replace("$$", "$") for word in words] if dollars else words


def test_the_service_notifies_and_runs_this_python() -> None:
    unit = read(systemd.service_unit())
    service = unit["Service"]
    assert unquoted(service["ExecStart"], dollars=True) == [sys.executable, "-m", "faops_cli", "daemon", "run"]
    expected = {"Type": "notify", "KillMode": "mixed", "Restart": "on-failure", "OOMPolicy": "continue"}
    assert {name: service[name] for name in expected} == expected
    assert service["ExecReload"].endswith("kill -HUP $MAINPID")
    assert int(service["TimeoutStopSec"]) > 10, "it may take 10 s to end"
    assert int(service["WatchdogSec"]) >= 30
    assert unit["Install"]["WantedBy"] == "default.target"
    for hiding in ("PrivateDevices", "MemoryDenyWriteExecute", "UMask", "ProtectProc", "PrivateTmp"):
        assert hiding not in service


def test_where_the_nvidia_driver_needs_its_setuid_helper_privileges_are_kept(
    private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(private_daemon))
    assert read(systemd.service_unit())["Service"]["NoNewPrivileges"] == "yes"
    (private_daemon / "nvidia-modprobe").touch(0o755)
    sandboxed = ("NoNewPrivileges", "RestrictAddressFamilies", "LockPersonality")
    assert not any(name in read(systemd.service_unit())["Service"] for name in sandboxed)


def test_the_socket_lies_where_clients_look(monkeypatch: pytest.MonkeyPatch, private_daemon: Path) -> None:
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / "run %t"))
    section = read(systemd.socket_unit())["Socket"]
    assert section["ListenStream"] == str(paths.socket_path(create=False)).replace("%", "%%")
    assert (section["SocketMode"], section["DirectoryMode"]) == ("0600", "0700")
    monkeypatch.delenv("FAOPS_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private_daemon))
    listened = read(systemd.socket_unit())["Socket"]["ListenStream"]
    assert listened.replace("%t", str(private_daemon)) == str(paths.socket_path(create=False))


def test_the_service_gets_the_settings_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_DAEMON_WINDOW", "22:00-06:00")
    monkeypatch.setenv("FAOPS_CACHE_DIR", '/a b/100%h/$HOME"x\\y')
    lines = systemd.service_unit().splitlines()
    told = [unquoted(line.removeprefix("Environment=")) for line in lines if line.startswith("Environment=")]
    assert ["FAOPS_DAEMON_WINDOW=22:00-06:00"] in told
    assert ['FAOPS_CACHE_DIR=/a b/100%h/$HOME"x\\y'] in told
    assert all(len(words) == 1 for words in told)


@settings(max_examples=30, deadline=None)
@given(words=st.lists(st.text(min_size=1, max_size=8) | st.text("$%\"\\ a'{}", min_size=1, max_size=8), min_size=1))
def test_any_word_is_quoted_so_that_systemd_reads_it_back(words: list[str]) -> None:
    if all(word.isprintable() for word in words):
        for dollars in (False, True):
            assert unquoted(" ".join(units.quoted(word, dollars) for word in words), dollars) == words
    else:
        with pytest.raises(DaemonError, match="control characters"):
            [units.quoted(word) for word in words]


def test_a_dollar_in_pythons_own_path_is_left_to_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/$x/python")
    words = unquoted(read(systemd.service_unit())["Service"]["ExecStart"], dollars=True)
    assert words == ["/usr/bin/env", "/opt/$x/python", "-m", "faops_cli", "daemon", "run"]


def test_units_lie_where_systemd_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/configs")
    assert systemd.unit_directory() == Path("/configs/systemd/user")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/users/ada")
    assert systemd.unit_directory() == Path("/users/ada/.config/systemd/user")


# ------------------------------------------------------------------------------------------------------------- on disk


def states(directory: Path) -> list[str]:
    return [unit.state for unit in systemd.look(directory)]


def test_install_writes_what_is_missing(directory: Path) -> None:
    assert states(directory) == ["missing", "missing"]
    assert [(unit.path, unit.written) for unit in systemd.install(directory)] == [
        (directory / name, True) for name in NAMES
    ]
    assert (directory / "faops.service").read_text() == systemd.service_unit()
    assert (directory / "faops.socket").read_text() == systemd.socket_unit()
    assert states(directory) == ["current", "current"]


def test_install_keeps_what_is_equal(directory: Path) -> None:
    systemd.install(directory)
    before = [(directory / name).stat().st_mtime_ns for name in NAMES]
    assert [unit.written for unit in systemd.install(directory)] == [False, False]
    assert [(directory / name).stat().st_mtime_ns for name in NAMES] == before


def test_install_goes_to_the_users_units(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(private_daemon / "c"))
    systemd.install()
    assert sorted(os.listdir(private_daemon / "c" / "systemd" / "user")) == sorted(NAMES)


def test_units_for_another_python_are_replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/old/python")
        systemd.install(directory)
    assert states(directory) == ["outdated", "current"]
    assert [unit.written for unit in systemd.install(directory)] == [True, False]
    assert states(directory) == ["current", "current"]


def test_another_version_or_environment_alone_is_no_reason_to_complain(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(units, "__version__", "0.0.1")
        patch.setenv("LD_LIBRARY_PATH", "/old")
        systemd.install(directory)
    assert states(directory) == ["current", "current"]
    assert [unit.written for unit in systemd.install(directory)] == [True, True], "but it is written anew if asked for"
    assert "/old" not in (directory / "faops.service").read_text()


@pytest.mark.parametrize("edit", ["Nice=19\n", "\n", "é"])
def test_edited_units_are_left_alone(edit: str, directory: Path) -> None:
    systemd.install(directory)
    unit = directory / "faops.socket"
    (directory / "faops.service").unlink()
    unit.write_text(unit.read_text() + edit)
    before = unit.read_text()
    assert states(directory) == ["missing", "edited"]
    for change in (systemd.install, systemd.uninstall):
        with pytest.raises(DaemonError, match=r"faops\.socket was edited; --force"):
            change(directory)
        assert unit.read_text() == before
        assert not (directory / "faops.service").exists(), "all or nothing"
    assert [unit.written for unit in systemd.install(directory, force=True)] == [True, True]
    assert states(directory) == ["current", "current"]


@pytest.mark.parametrize(
    "content", ["", "[Service]\n", "# Written by `faops daemon install` (faops 9, 0123456789abcdef)\n"]
)
def test_units_of_somebody_else_count_as_edited(content: str, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "faops.service").write_text(content)
    assert states(directory) == ["edited", "missing"]


def test_uninstall_removes_what_is_there(directory: Path) -> None:
    assert systemd.uninstall(directory) == []
    systemd.install(directory)
    (directory / "other.service").touch()
    (directory / "faops.socket").unlink()
    assert systemd.uninstall(directory) == [directory / "faops.service"]
    assert os.listdir(directory) == ["other.service"]


def test_uninstall_removes_the_links_of_enabled_units(directory: Path) -> None:
    systemd.install(directory)
    links = [directory / "default.target.wants" / "faops.service", directory / "sockets.target.wants" / "faops.socket"]
    other = directory / "default.target.wants" / "other.service"
    for link in (*links, other):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(directory / link.name)
    (directory / "faops.socket").unlink()  # its link is left
    assert systemd.uninstall(directory) == [directory / "faops.service", *links]
    assert not any(os.path.lexists(link) for link in links)
    assert other.is_symlink()


def test_uninstall_removes_edited_ones_by_force(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "faops.service").write_text("mine\n")
    assert systemd.uninstall(directory, force=True) == [directory / "faops.service"]


def test_a_masked_unit_is_named(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "faops.service").symlink_to("/dev/null")
    with pytest.raises(DaemonError, match=r"faops\.service cannot be read"):
        systemd.install(directory)


def test_a_directory_that_cannot_be_written_is_named(directory: Path) -> None:
    directory.parent.mkdir(parents=True)
    directory.touch()
    with pytest.raises(DaemonError, match=f"{directory}.* cannot be"):
        systemd.install(directory)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_them(directory: Path, private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = private_daemon / 'py %t$HOME"\\th on'
    shutil.copy("/bin/true", python)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("FAOPS_CACHE_DIR", '/a b/100%h/$HOME"x\\y')
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private_daemon))
    systemd.install(directory)
    command = ["systemd-analyze", "--user", "--man=no", "verify", *(str(directory / name) for name in NAMES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
