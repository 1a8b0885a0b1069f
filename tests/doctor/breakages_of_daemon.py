"""How the checks of daemon are broken; see :mod:`tests.doctor.breakages`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from faops._version import __version__
from faops.daemon import paths, systemd
from faops.daemon.lock import Instance
from faops.doctor import probes
from tests.cli.daemon.support import FakeDaemon, job, served, status
from tests.doctor.breakages import breaks
from tests.doctor.machine import Machine


@breaks("daemon.package")
def used_and_then_uninstalled(machine: Machine) -> Iterator[str]:
    yield ""
    paths.queue_path().touch()
    usual = probes.installed
    machine.patch.setattr(probes, "installed", lambda name: None if name == "uvicorn" else usual(name))
    yield "the daemon was used here, and lacks uvicorn"


def running(version: str = __version__) -> Iterator[FakeDaemon]:
    """A daemon that holds the lock and answers; the same one every time the generator goes on."""
    fake = FakeDaemon()
    fake.answers["GET /v1/status"] = status(version=version)
    with ExitStack() as stack:
        stack.enter_context(Instance.acquire())
        stack.enter_context(served(fake, paths.socket_path()))
        yield fake


@breaks("daemon.running")
def daemon_of_another_version(machine: Machine) -> Iterator[str]:
    for fake in running():
        yield ""
        fake.answers["GET /v1/status"] = status(version="0.0.1")
        yield f"is of faops 0.0.1, and {__version__} is installed"


@breaks("daemon.running")
def daemon_that_does_not_answer(machine: Machine) -> Iterator[str]:
    for fake in running():
        yield ""
        fake.answers["GET /v1/status"] = (500, {"title": "", "status": 500, "detail": "a defect"})
        yield "does not answer: a defect"


@breaks("daemon.running")
def daemon_of_an_unknown_kind(machine: Machine) -> Iterator[str]:
    for fake in running():
        yield ""
        fake.answers["GET /v1/status"] = {"version": 1}
        yield "its answer makes no sense"


@breaks("daemon.running")
def daemon_that_hangs(machine: Machine) -> Iterator[str]:
    """Nobody listens on the socket of a process that holds the lock."""
    for _ in running():
        yield ""
        paths.socket_path().unlink()
        yield "does not answer: no daemon answers at"


@breaks("daemon.runtime")
def open_directory(machine: Machine) -> Iterator[str]:
    directory = paths.runtime_directory()
    yield ""
    directory.chmod(0o755)
    yield "is open to others (mode 0755)"


@breaks("daemon.runtime")
def link_in_place_of_the_directory(machine: Machine) -> Iterator[str]:
    yield ""
    directory = paths.runtime_directory()
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to(directory.with_name("elsewhere"))
    yield "is a symbolic link"


@breaks("daemon.runtime")
def open_socket(machine: Machine) -> Iterator[str]:
    for _ in running():
        yield ""
        paths.socket_path().chmod(0o666)
        yield "daemon.sock is open to others (mode 0666)"


@breaks("daemon.runtime")
def file_in_place_of_the_socket(machine: Machine) -> Iterator[str]:
    yield ""
    paths.socket_path().write_text("")
    yield "daemon.sock is in the way: it is no socket"


@breaks("daemon.queue")
def quarantined_jobs(machine: Machine) -> Iterator[str]:
    for fake in running():
        yield ""
        fake.answers["GET /v1/status"] = status(jobs={"quarantined": 2})
        fake.answers["GET /v1/jobs"] = {"jobs": [job(7, "quarantined", message="it hangs")], "next": None}
        yield "2 problems failed too often"


@breaks("daemon.units")
def edited_unit(machine: Machine) -> Iterator[str]:
    _install(machine)
    yield ""
    path = systemd.unit_directory() / "faops.service"
    path.write_text(path.read_text() + "Nice=19\n")
    yield "edited by hand, and no longer renewed by faops: faops.service"


@breaks("daemon.units")
def units_of_another_python(machine: Machine) -> Iterator[str]:
    _install(machine)
    yield ""
    machine.patch.setattr("sys.executable", "/gone/bin/python")
    yield "of another faops or Python: faops.service"


@breaks("daemon.units")
def one_unit_alone(machine: Machine) -> Iterator[str]:
    _install(machine)
    yield ""
    (systemd.unit_directory() / "faops.socket").unlink()
    yield "missing, or of another faops or Python: faops.socket"


@breaks("daemon.units")
def unit_that_cannot_be_read(machine: Machine) -> Iterator[str]:
    _install(machine)
    yield ""
    path = systemd.unit_directory() / "faops.service"
    path.unlink()
    path.mkdir()
    yield "the units cannot be looked at"


def _install(machine: Machine) -> None:
    machine.patch.setenv("XDG_CONFIG_HOME", str(machine.root / "config"))
    systemd.install()
