"""Where the daemon's files lie, and which directories are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest

from faops.daemon import paths
from faops.errors import DaemonError

STATE_FILES = {paths.queue_path: "queue.sqlite", paths.log_path: "daemon.log", paths.lock_path: "daemon.lock"}
RUNTIME_FILES = {paths.socket_path: "daemon.sock", paths.token_path: "token"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def owned_by(path: Path, owner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``path`` look as if it belonged to another user, which only root could make true."""
    real = os.lstat

    def lstat(looked: str | Path) -> os.stat_result:
        status = real(looked)
        return os.stat_result((*status[:4], owner, *status[5:])) if Path(looked) == path else status

    monkeypatch.setattr(paths.os, "lstat", lstat)


def test_files_of_the_state_lie_below_the_host(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.socket, "gethostname", lambda: "node-7.example")
    for path, name in STATE_FILES.items():
        assert path() == private_daemon / "state" / "daemon" / "node-7.example" / name


def test_files_of_the_runtime_lie_in_its_directory(private_daemon: Path) -> None:
    for path, name in RUNTIME_FILES.items():
        assert path() == private_daemon / "run" / name


@pytest.mark.parametrize(
    ("host", "name"),
    [("a/../b", "a_.._b"), ("..", "localhost"), ("", "localhost"), ("häuser\n", "h_user_"), ("db_1.x-y", "db_1.x-y")],
)
def test_any_host_name_makes_one_directory(host: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.socket, "gethostname", lambda: host)
    assert paths.state_directory().name == name
    assert paths.state_directory().parent.name == "daemon"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
@pytest.mark.parametrize("directory", [paths.state_directory, paths.runtime_directory])
def test_whatever_is_made_is_closed_to_others(
    mask: int, directory: Callable[[], Path], private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / "a" / "b"))
    with umask(mask):
        made = directory()
    for path in (made, *made.parents):
        if path == private_daemon:
            break
        assert mode(path) == 0o700, path


def test_nothing_is_made_where_that_is_not_asked_for(private_daemon: Path) -> None:
    for path in (*STATE_FILES, *RUNTIME_FILES):
        path(create=False)
    assert list(private_daemon.iterdir()) == []


def test_what_is_there_already_is_taken(private_daemon: Path) -> None:
    (private_daemon / "run").mkdir(mode=0o700)
    (private_daemon / "run" / "daemon.sock").touch()
    assert paths.runtime_directory() == private_daemon / "run"


@pytest.mark.parametrize("others", [0o050, 0o005, 0o070, 0o001, 0o010])
def test_a_runtime_directory_open_to_others_is_refused(others: int, private_daemon: Path) -> None:
    run = private_daemon / "run"
    run.mkdir()
    run.chmod(0o700 | others)
    with pytest.raises(DaemonError, match=f"chmod 700 {run}"):
        paths.runtime_directory()
    assert mode(run) == 0o700 | others, "it is the user's to decide"


def test_a_state_directory_may_be_readable(private_daemon: Path) -> None:
    directory = paths.state_directory()
    directory.chmod(0o755)
    assert paths.state_directory() == directory


@pytest.mark.parametrize("create", [True, False])
def test_a_symbolic_link_is_refused(create: bool, private_daemon: Path) -> None:
    (private_daemon / "elsewhere").mkdir(mode=0o700)
    (private_daemon / "run").symlink_to(private_daemon / "elsewhere")
    with pytest.raises(DaemonError, match="symbolic link"):
        paths.socket_path(create)


def test_a_dangling_link_is_refused_and_not_followed(private_daemon: Path) -> None:
    (private_daemon / "run").symlink_to(private_daemon / "elsewhere")
    with pytest.raises(DaemonError, match="symbolic link"):
        paths.runtime_directory()
    assert not (private_daemon / "elsewhere").exists()


@pytest.mark.parametrize("directory", [paths.state_directory, paths.runtime_directory])
def test_a_file_in_the_way_is_named(
    directory: Callable[[], Path], private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAOPS_STATE_DIR", str(private_daemon / "run"))
    (private_daemon / "run").touch()
    with pytest.raises(DaemonError, match=str(private_daemon / "run")):
        directory()


@pytest.mark.parametrize("directory", [paths.state_directory, paths.runtime_directory])
def test_another_users_directory_is_refused(directory: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    owned_by(directory(), os.geteuid() + 1, monkeypatch)
    with pytest.raises(DaemonError, match="belongs to"):
        directory()


def test_a_directory_below_another_users_is_refused(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.runtime_directory()
    owned_by(private_daemon, os.geteuid() + 1, monkeypatch)
    with pytest.raises(DaemonError, match=f"{private_daemon} belongs to"):
        paths.runtime_directory()


@pytest.mark.parametrize(("above", "safe"), [(0o777, False), (0o1777, True), (0o755, True), (0o775, True)])
def test_a_directory_that_anybody_could_replace_is_refused(
    above: int, safe: bool, private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = private_daemon / "shared"
    parent.mkdir()
    parent.chmod(above)
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(parent / "run"))
    if safe:
        assert mode(paths.runtime_directory()) == 0o700
    else:
        with pytest.raises(DaemonError, match=f"anybody may write to {parent}"):
            paths.runtime_directory()
        assert not (parent / "run").exists()


def test_what_a_link_above_leads_to_is_looked_at(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = private_daemon / "shared" / "below"
    parent.mkdir(parents=True)
    parent.parent.chmod(0o777)
    (private_daemon / "link").symlink_to(parent)
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / "link" / "run"))
    with pytest.raises(DaemonError, match="anybody may write"):
        paths.runtime_directory()


def test_another_users_link_above_is_refused(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (private_daemon / "mine").mkdir(mode=0o700)
    (private_daemon / "link").symlink_to(private_daemon / "mine")
    owned_by(private_daemon / "link", os.geteuid() + 1, monkeypatch)
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / "link" / "run"))
    with pytest.raises(DaemonError, match="link belongs to"):
        paths.runtime_directory()


def test_one_made_by_another_process_meanwhile_is_taken(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def late(path: Path, mode: int = 0o777) -> None:
        real(path, mode)
        raise FileExistsError(path)

    monkeypatch.setattr(Path, "mkdir", late)
    assert paths.runtime_directory() == private_daemon / "run"


def test_a_directory_that_cannot_be_made_is_named(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int = 0o777) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DaemonError, match=r"run cannot be made: No space left on device"):
        paths.runtime_directory()


def test_a_socket_path_that_is_too_long_is_refused(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = paths.SOCKET_BYTES - len(str(private_daemon)) - len("//daemon.sock")
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / ("r" * room)))
    assert len(str(paths.socket_path())) == paths.SOCKET_BYTES
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", str(private_daemon / ("r" * (room - 1) + "é")))
    with pytest.raises(DaemonError, match=r"107 bytes, and this one has 108; set FAOPS_RUNTIME_DIR"):
        paths.socket_path()


def test_a_relative_directory_is_made_absolute(private_daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(private_daemon)
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", "here")
    assert paths.runtime_directory() == private_daemon / "here"


def test_an_unknown_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAOPS_RUNTIME_DIR", "~nobody-of-that-name/run")
    with pytest.raises(DaemonError, match=r"runtime_dir: got '~nobody-of-that-name/run'"):
        paths.runtime_directory()


def test_without_settings_the_users_directories_are_taken(
    private_daemon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAOPS_STATE_DIR")
    monkeypatch.delenv("FAOPS_RUNTIME_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(private_daemon / "states"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private_daemon / "runs"))
    (private_daemon / "runs").mkdir(mode=0o700)
    assert paths.runtime_directory() == private_daemon / "runs" / "faops"
    assert paths.state_directory().is_relative_to(private_daemon / "states" / "faops" / "daemon")


def test_without_xdg_runtime_dir_there_is_one_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("FAOPS_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert paths.runtime_directory(create=False).name == "faops"
    assert not recwarn.list


def test_what_platformdirs_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object, **options: object) -> str:
        raise PermissionError(13, "/tmp/runtime-7 is not yours")

    monkeypatch.delenv("FAOPS_RUNTIME_DIR")
    monkeypatch.setattr(platformdirs, "user_runtime_dir", refuse)
    with pytest.raises(DaemonError, match=r"/tmp/runtime-7 is not yours; set FAOPS_RUNTIME_DIR"):
        paths.runtime_directory()
