"""Group cache, its files: the directory can be written and locked, has room, and holds nothing odd.

What is in the files: :mod:`faops.doctor.results`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from faops import settings
from faops.architectures import MIB
from faops.autotune.cache import TuningCache
from faops.doctor import probes, results
from faops.doctor.check import Check, Result, fail, ok, skipped, warn
from faops.files import TEMPORARY_SUFFIX, write_whole

GROUP = "cache"
COMFORTABLE_BYTES = 100 * MIB
LEFTOVER_SECONDS = 3600.0  # a temporary file older than this belongs to a process that was killed
AHEAD_SECONDS = 120.0  # a file server's clock may be this far ahead
ELSEWHERE = "export FAOPS_CACHE_DIR=/a/directory/you/can/write"
NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs", "glusterfs")


def checks() -> list[Check]:
    return [
        Check("cache.directory", GROUP, "the cache directory can be written", check_directory),
        Check("cache.space", GROUP, "there is room on the disk of the cache", check_space),
        Check("cache.locks", GROUP, "files of the cache can be locked", check_locks),
        Check("cache.clock", GROUP, "no file of the cache is from the future", check_clock),
        Check("cache.leftovers", GROUP, "no killed process has left temporary files", check_leftovers),
        *results.checks(),
    ]


def check_directory() -> Result:
    """Write a file there the way the cache does."""
    directory = settings.cache_root()
    state = "can be written" if directory.exists() else "can be created"
    try:
        with _probe(directory) as path:
            write_whole(path, "written by faops doctor\n")
    except OSError as error:
        reason = error.strerror or str(error)
        consequence = "attention works without it, but tuning results are not remembered"
        return fail(f"{directory} cannot be written: {reason}", consequence, fix=ELSEWHERE)
    return ok(f"{directory} {state}")


@contextlib.contextmanager
def _probe(directory: Path) -> Iterator[Path]:
    """Path for a file in ``directory``. The file is removed at the end, and so is every directory made for it."""
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    path = directory / f"doctor-probe-{os.getpid()}-{time.monotonic_ns()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        for made in missing:
            with contextlib.suppress(OSError):  # another process has begun to use it
                made.rmdir()


def check_space() -> Result:
    directory = settings.cache_root().absolute()
    existing = next((path for path in (directory, *directory.parents) if os.path.isdir(path)), None)
    if existing is None:
        return skipped(f"no part of {directory} exists")
    free = shutil.disk_usage(existing).free
    summary = f"{free / MIB:,.0f} MiB free on the disk of {existing}"
    if free < COMFORTABLE_BYTES:
        return warn(summary, fix=ELSEWHERE)
    return ok(summary)


def check_locks() -> Result:
    """Locks keep two processes from measuring on one device, or compiling one kernel, at the same time."""
    directory = settings.cache_root()
    kind = probes.filesystem(directory)
    where = f"{kind or 'unknown'} file system" + (" of another machine" if kind.startswith(NETWORK) else "")
    try:
        with _probe(directory) as path, filelock.FileLock(path, timeout=0):
            pass
    except filelock.Timeout:
        return warn(f"a lock that nobody holds cannot be had on the {where}", fix=ELSEWHERE)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        consequence = "two processes may measure at the same time and spoil each other's timings"
        return warn(f"files cannot be locked on the {where}: {reason}", consequence, fix=ELSEWHERE)
    return ok(f"locks work on the {where}")


def check_clock() -> Result:
    """A file from the future counts as changed at every look, and its date as newer than any other."""
    now = time.time()
    late = [path for path, written in _files() if written > now + AHEAD_SECONDS]
    if late:
        mend = f"sudo timedatectl set-ntp true && find '{_base()}' -newermt now -exec touch {{}} +"
        text = f"{len(late)} files are dated in the future, so this machine's clock is, or was, wrong"
        return warn(text, *map(str, late[:5]), fix=mend)
    return ok(f"no file is newer than now, {time.strftime('%Y-%m-%d %H:%M', time.localtime(now))}")


def check_leftovers() -> Result:
    old = time.time() - LEFTOVER_SECONDS
    left = [path for path, written in _files() if path.name.endswith(TEMPORARY_SUFFIX) and written < old]
    if left:
        text = f"{len(left)} temporary files of killed processes"
        mend = f"find '{_base()}' -name '*{TEMPORARY_SUFFIX}' -mmin +{LEFTOVER_SECONDS // 60:.0f} -delete"
        return warn(text, "they are read by nobody", *map(str, left[:5]), fix=mend)
    return ok("none")


def _base() -> Path:
    return TuningCache().base


def _files() -> list[tuple[Path, float]]:
    """Every file below the tuning results with the time it was written, in seconds since the epoch."""
    found = []
    for folder, _, names in os.walk(_base()):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                found.append((path, path.lstat().st_mtime))
    return found
