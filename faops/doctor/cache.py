"""Group cache: the directory of tuning results can be written, has room, and its entries can be read."""

from __future__ import annotations

import contextlib
import os
import shutil

from faops import settings
from faops.architectures import MIB
from faops.autotune.cache import TuningCache
from faops.autotune.files import write_whole
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "cache"
COMFORTABLE_BYTES = 100 * MIB
ELSEWHERE = "export FAOPS_CACHE_DIR=/a/directory/you/can/write"


def checks() -> list[Check]:
    return [
        Check("cache.directory", GROUP, "the cache directory can be written", check_directory),
        Check("cache.entries", GROUP, "the tuning results can be read", check_entries),
        Check("cache.space", GROUP, "there is room on the disk of the cache", check_space),
    ]


def check_directory() -> Result:
    """Write a file there the way the cache does, and remove it and every directory made for it."""
    directory = settings.cache_root()
    missing = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    probe = directory / "doctor-probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(probe, "written by faops doctor\n")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        consequence = "attention works without it, but tuning results are not remembered"
        return fail(f"{directory} cannot be written: {reason}", consequence, fix=ELSEWHERE)
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # another process has begun to use it
                path.rmdir()
    state = "can be created" if missing else "can be written"
    return ok(f"{directory} {state}")


def check_entries() -> Result:
    cache = TuningCache()
    files = sorted(cache.base.glob("*/*/entries/*.json"))
    readable = cache.entries()
    if not files:
        return ok("no tuning results yet; `faops tune` makes them")
    unreadable = sorted(set(files) - {entry.path for entry in readable if entry.path})
    if unreadable:
        text = f"{len(unreadable)} of {len(files)} tuning results cannot be read and are not used"
        return warn(text, *map(str, unreadable), fix="rm " + " ".join(f"'{path}'" for path in unreadable))
    return ok(f"{len(readable)} tuning {'result' if len(readable) == 1 else 'results'}")


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
