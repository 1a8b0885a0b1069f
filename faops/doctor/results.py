"""Group cache, its contents: tuning results that are used, those that no longer are, and what waits to be tuned."""

from __future__ import annotations

from pathlib import Path

import filelock

from faops import registry
from faops.autotune.cache import TuningCache, environment, misses, needs_recheck, serving
from faops.autotune.cache.entry import Entry
from faops.autotune.search.trial import QUARANTINED
from faops.autotune.tuner import pending
from faops.autotune.tuner.locking import LOCK_NAME
from faops.device import detect
from faops.doctor import accelerators
from faops.doctor.check import Check, Result, ok, warn
from faops.doctor.shapes import tune_command
from faops.files import below
from faops.quantities import counted

GROUP = "cache"


def checks() -> list[Check]:
    return [
        Check("cache.entries", GROUP, "the tuning results can be read", check_entries),
        Check("cache.stale", GROUP, "the tuning results are of the kernels and versions that are here", check_stale),
        Check("cache.unfinished", GROUP, "no tuning run was interrupted", check_unfinished),
        Check("cache.misses", GROUP, "there is room to note what runs untuned", check_misses),
    ]


def check_entries() -> Result:
    cache = TuningCache()
    files = cache.files()
    readable = cache.entries()
    if not files:
        return ok("no tuning results yet; `faops tune` makes them")
    unreadable = sorted(set(files) - {entry.path for entry in readable if entry.path})
    if unreadable:
        text = f"{len(unreadable)} of {len(files)} tuning results cannot be read and are not used"
        return warn(text, *map(str, unreadable), fix="rm -r " + " ".join(f"'{path}'" for path in unreadable))
    return ok(counted(len(readable), "tuning result", "tuning results"), *_lost_configs(readable))


def _lost_configs(entries: list[Entry]) -> list[str]:
    """What was left out because it crashed or hung; a failure to compile is part of every search."""
    lost = [item for entry in entries for item in entry.dropped if item.get("kind") in QUARANTINED]
    return [f"left out: {item.get('config', '?')} {item['kind']}: {item.get('reason', '')}" for item in lost]


def check_stale() -> Result:
    """Results for this machine's devices of another kernel source, other versions of torch or a compiler, or another
    driver."""
    kernels, present = registry.kernels(), environment.versions()
    devices = {detect(device).identity for device in accelerators.present()}
    entries = [entry for entry in TuningCache().entries() if entry.device in devices]
    here = [entry for entry in entries if entry.environment == present]
    elsewhere = [entry for entry in entries if entry.environment != present]
    changed = [entry for entry in here if serving(entry, kernels) is None]
    recheck = [(entry, reason) for entry in here if (reason := needs_recheck(entry, entry.device))]
    details = [f"{entry.kernel} has changed since: {entry.attention_problem()}" for entry in changed]
    details += [f"{reason}: {entry.attention_problem()}" for entry, reason in recheck]
    details += _other_versions(elsewhere, present)
    if changed:
        count = counted(len(changed), "tuning result", "tuning results")
        text = f"{count} of kernels that have changed since, and not used"
        return warn(text, *details, fix=_tune_again(changed))
    if recheck:
        text = f"{counted(len(recheck), 'tuning result', 'tuning results')} from another driver, to be measured again"
        return warn(text, *details, fix=_tune_again([entry for entry, _ in recheck]))
    if elsewhere and not here:
        text = f"all {counted(len(elsewhere), 'tuning result', 'tuning results')} from other versions, and not used"
        return warn(text, *details, fix=_tune_again(elsewhere))
    return ok("every one is" if here else "there are none", *details)


def _tune_again(entries: list[Entry]) -> str:
    """Tune the problems of the first device again; those that cannot be written down wait until a program runs them."""
    identity = entries[0].device
    problems = [entry.attention_problem() for entry in entries if entry.device == identity]
    return tune_command(problems, identity) or "faops cache prune --stale && faops tune --from-misses"


def _other_versions(entries: list[Entry], present: dict[str, str]) -> list[str]:
    """What differs, a line for each other environment."""
    lines: dict[str, None] = {}
    for entry in entries:
        names = sorted(set(present) | set(entry.environment))
        differing = [name for name in names if entry.environment.get(name) != present.get(name)]
        was = ", ".join(f"{name} {entry.environment.get(name, 'not installed')}" for name in differing)
        lines[f"kept for {was}"] = None
    return list(lines)


def check_unfinished() -> Result:
    """What a run of the tuner has still to do is on disk while it runs, and stays there when it is interrupted."""
    directories = below(TuningCache().base, f"*/{environment.directory_name()}")
    journals = [path for directory in directories for path in below(directory, "journal/*.jsonl")]
    problems = [problem for directory in directories for problem in pending.load(directory).problems]
    if not journals and not problems:
        return ok("none")
    if any(_held(directory.parent / LOCK_NAME) for directory in directories):
        return ok("a process is tuning now")
    timings = sum(max(0, _lines(path) - 1) for path in journals)  # the first line is no timing
    count = counted(max(len(problems), len(journals)), "problem", "problems")
    text = f"{count} of an interrupted run left, with {counted(timings, 'timing', 'timings')} kept"
    return warn(text, *map(str, problems), fix="faops tune --resume")


def _held(path: Path) -> bool:
    """Whether another process holds this lock."""
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n") if path.is_file() else 0
    except OSError:
        return 0


def check_misses() -> Result:
    cache = TuningCache()
    for directory in below(cache.base, f"*/{environment.directory_name()}/{misses.DIRECTORY}"):
        if sum(1 for _ in directory.iterdir()) >= misses.LIMIT:
            text = f"{misses.LIMIT} problems ran untuned, and no further one is noted"
            return warn(text, str(directory), fix="faops tune --from-misses")
    waiting = misses.counts(cache)
    if not waiting:
        return ok("none waits")
    details = (f"{identity}: {count}" for identity, count in waiting.items())
    total = counted(sum(waiting.values()), "problem", "problems")
    return ok(f"{total} ran untuned; `faops tune --from-misses` tunes them", *details)
