"""Group daemon: tuning in the background, which is optional. Its packages, process, socket, queue and systemd units."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from faops._version import __version__
from faops.doctor import probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn
from faops.errors import DaemonError, SettingsError
from faops.quantities import counted

GROUP = "daemon"
PACKAGES = ("starlette", "uvicorn", "httpx", "prometheus-client")
INSTALL = "pip install 'faops[daemon]'"
RESTART = "faops daemon stop --kill && faops daemon start"
RELOAD = "systemctl --user daemon-reload"
ELSEWHERE = "export FAOPS_RUNTIME_DIR=/a/directory/of/yours"
ANSWER_SECONDS = 10.0
SHOWN = 5  # jobs that are told in the details


def checks() -> list[Check]:
    return [
        Check("daemon.package", GROUP, "the packages of the daemon are installed, if it is used", check_package),
        Check("daemon.running", GROUP, "a daemon that runs is of this version, and answers", check_running),
        Check("daemon.runtime", GROUP, "nobody else can open the daemon's socket", check_runtime),
        Check("daemon.queue", GROUP, "tuning in the background does not fail again and again", check_queue),
        Check("daemon.units", GROUP, "the systemd units are those of this installation", check_units),
    ]


def _where_it_runs(check: Callable[[], Result]) -> Callable[[], Result]:
    """Skip a check on systems without a daemon, and where the settings do not say where its files are."""

    @wraps(check)
    def checked() -> Result:
        if sys.platform == "win32":
            return skipped("the daemon does not run on Windows")
        try:
            return check()
        except SettingsError as error:
            return fail(str(error), fix="faops doctor settings.values")

    return checked


@_where_it_runs
def check_package() -> Result:
    found = {name: probes.installed(name) for name in PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if not missing:
        return ok(", ".join(f"{name} {version}" for name, version in found.items()))
    if _was_used():
        return warn(f"the daemon was used here, and lacks {', '.join(missing)}", fix=INSTALL)
    return skipped(f"no daemon without {', '.join(missing)}; it is optional, and {INSTALL} brings what it needs")


def _was_used() -> bool:
    """Whether a daemon of this user has run on this host, or systemd is to run one."""
    from faops.daemon import paths, systemd

    try:
        return paths.queue_path(create=False).exists() or any(unit.state != "missing" for unit in systemd.look())
    except (DaemonError, OSError):
        return False


@_where_it_runs
def check_running() -> Result:
    from faops.daemon import lock

    try:
        holder = lock.holder()
    except DaemonError as error:
        return warn(str(error), fix="faops daemon status")
    if holder is None:
        return skipped("no daemon runs; it is optional, and `faops daemon start` starts one")
    try:
        answer = _ask()
    except DaemonError as error:
        return warn(f"the daemon, pid {holder.pid}, does not answer: {error}", fix=RESTART)
    if answer.version != __version__:
        text = f"the daemon, pid {holder.pid}, is of faops {answer.version}, and {__version__} is installed"
        return warn(text, "what it tunes is of its own version", fix=RESTART)
    memory = f", {answer.memory_bytes / 2**20:.0f} MiB" if answer.memory_bytes else ""
    return ok(f"pid {holder.pid}, faops {answer.version}{memory}, {answer.state}", *answer.gates)


@dataclass(frozen=True)
class Answer:
    """What a daemon says of itself, as far as it is looked at: ``gates`` is why a device is tuned on or not."""

    version: str
    state: str
    memory_bytes: float
    gates: tuple[str, ...]
    counts: dict[str, int]


def _ask() -> Answer:
    """Raises DaemonError, also for an answer that makes no sense."""
    from faops.daemon.client import Client

    with Client(timeout=ANSWER_SECONDS) as client:
        status = client.status()
    try:
        gates = tuple(f"{device['device']}: {device['gate']['reason']}" for device in status["devices"])
        counts = {str(state): int(count) for state, count in status["jobs"].items()}
        memory = float(status.get("memory_bytes") or 0)
        return Answer(str(status["version"]), str(status["state"]), memory, gates, counts)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DaemonError(f"its answer makes no sense ({type(error).__name__}: {error})") from None


@_where_it_runs
def check_runtime() -> Result:
    from faops.daemon import paths

    try:
        directory = paths.runtime_directory(create=False)
        path = paths.socket_path(create=False)
    except DaemonError as error:
        return fail(str(error), "the daemon does not start like this", fix=_closing(str(error)))
    if not directory.exists():
        return ok(f"{directory} is not there yet, and will be made")
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ok(f"{directory} is closed to others")
    if not stat.S_ISSOCK(status.st_mode):
        return fail(f"{path} is in the way: it is no socket", fix=f"rm -r '{path}'")
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        text = f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})"
        return warn(text, "its directory is closed to them", fix=f"chmod 600 '{path}'")
    return ok(f"{path} is closed to others")


def _closing(message: str) -> str:
    """The command that mends a directory; that to close it stands at the end of the message itself."""
    _, found, command = message.rpartition("chmod ")
    return f"chmod {command}" if found else ELSEWHERE


@_where_it_runs
def check_queue() -> Result:
    from faops.daemon import lock

    try:
        if lock.holder() is None:
            return skipped("no daemon runs that could be asked")
        counts = _ask().counts
        failed = counts.get("quarantined", 0)
        details = _quarantined() if failed else []
    except DaemonError:
        return skipped("the daemon does not answer")
    if failed:
        text = f"{counted(failed, 'problem', 'problems')} failed too often, and will not be tried again"
        return warn(text, *details, fix="faops daemon jobs --state quarantined")
    waiting = counts.get("waiting", 0)
    return ok(f"{counted(waiting, 'problem waits', 'problems wait')} to be tuned" if waiting else "nothing waits")


def _quarantined() -> list[str]:
    """The first of the jobs that failed too often. Raises DaemonError."""
    from faops.daemon.client import Client

    with Client(timeout=ANSWER_SECONDS) as client:
        jobs = client.jobs(states=("quarantined",), limit=SHOWN).get("jobs") or []
    return [f"job {job.get('id')}, {job.get('problem')}: {job.get('message')}" for job in jobs if isinstance(job, dict)]


@_where_it_runs
def check_units() -> Result:
    from faops.daemon import systemd

    try:
        units = systemd.look()
    except DaemonError as error:
        return warn(f"the units cannot be looked at: {error}", fix="faops daemon install --print")
    names: dict[str, list[str]] = {}
    for unit in units:
        names.setdefault(unit.state, []).append(unit.path.name)
    if set(names) == {"missing"}:
        return skipped("none; `faops daemon install` lets systemd run the daemon")
    folder = str(units[0].path.parent)
    if "edited" in names:
        text = f"edited by hand, and no longer renewed by faops: {', '.join(names['edited'])}"
        keep = "`systemctl --user edit faops.service` keeps changes in a file of their own"
        return warn(text, keep, folder, fix=f"faops daemon install --force && {RELOAD}")
    stale = [*names.get("outdated", []), *names.get("missing", [])]
    if stale:
        text = f"missing, or of another faops or Python: {', '.join(stale)}"
        return warn(text, folder, fix=f"faops daemon install && {RELOAD}")
    return ok(f"{' and '.join(names['current'])} are those of this installation", folder)
