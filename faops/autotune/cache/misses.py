"""The problems that programs ran untuned, one small file each, for `faops tune --from-misses`.

They lie beside the winners, under ``<cache>/tune/v1/<device>/<environment>/misses``. A call writes its problem once it
has run; the file is created exclusively, so that of any number of processes one writes it. How often the problem ran
untuned is counted apart, see :mod:`faops.hits`. Nothing here is worth failing or slowing a call: what cannot be written
is dropped.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from faops import dispatch, hits, registry, settings
from faops._version import __version__
from faops.autotune.cache import TuningCache, environment, serving
from faops.autotune.cache.entry import file_name
from faops.autotune.cache.validation import is_possible
from faops.device import DeviceProfile
from faops.dispatch import Plan
from faops.files import below, read_whole, remove
from faops.hits import Tally
from faops.problem import AttentionProblem

SCHEMA = 1  # of the files
LIMIT = 1000  # files of one device in one environment; further misses are dropped
DIRECTORY = hits.MISSES

_BUCKETED = ("batch", "seqlen_q", "seqlen_k", "band")  # the fields that a key knows by their power of two only
_exact_fields = operator.attrgetter(*(item.name for item in fields(AttentionProblem) if item.name not in _BUCKETED))


# ---------------------------------------------------------------------------------------------- writing, in a call


_closed: set[Path] = set()  # cache roots that cannot be written, and directories that are full


def record(problem: AttentionProblem, device: DeviceProfile, plan: Plan) -> Tally | None:
    """Write down ``problem``, which ``device`` has just run by ``plan``, if tuning may help it, and count the call.

    Returns what counts the calls that follow, None where nobody wants to know. Never raises.
    """
    if plan.source == "tuned" or plan.forced:
        return None
    seen = dispatch.memo()  # so that a miss is looked at again when the winners on disk have changed
    mark = _mark(problem, device)
    try:
        found: Tally | None = seen[mark]
    except KeyError:
        found = None
        with contextlib.suppress(Exception):  # the call has succeeded, whatever becomes of the note about it
            found = _begin(problem, device)
        seen[mark] = found
    else:
        if found is not None:
            found.count()
    return found


def tally(problem: AttentionProblem, device: DeviceProfile, plan: Plan) -> Tally | None:
    """What :func:`record` has returned for a call like this."""
    if plan.source == "tuned" or plan.forced:
        return None
    return dispatch.memo().get(_mark(problem, device))


def _mark(problem: AttentionProblem, device: DeviceProfile) -> tuple[Any, ...]:
    return ("miss", device, _bucket(problem))


def _bucket(problem: AttentionProblem) -> tuple[Any, ...]:
    """Equal where the keys are equal, and cheaper than a key: a growing cache asks for it with every token."""
    band = problem.band
    sizes = (problem.batch, problem.seqlen_q, problem.seqlen_k, band.left, band.right)
    return (_exact_fields(problem), *[(size - 1).bit_length() if size > 1 else size - 1 for size in sizes])


def _begin(problem: AttentionProblem, device: DeviceProfile) -> Tally | None:
    """See that there is a miss for this problem, and that this call of it counts; None where there is none.

    Nothing is written in an emulator, and none if there is no work to tune.
    """
    root = settings.cache_root()
    if root in _closed or not hits.recording() or problem.flops() <= 0:
        return None
    try:
        return _record(problem, device, TuningCache(root).directory(device) / DIRECTORY)
    except OSError:
        _closed.add(root)
        return None


def _record(problem: AttentionProblem, device: DeviceProfile, directory: Path) -> Tally | None:
    key = problem.key()
    path = directory / file_name(key)
    if not os.path.lexists(path):
        if directory in _closed:
            return None
        directory.mkdir(parents=True, exist_ok=True)
        if len(os.listdir(directory)) >= LIMIT:
            _closed.add(directory)
            return None
        content = {
            "schema": SCHEMA,
            "key": key,
            "problem": problem.as_dict(),
            "device": device.as_dict(),
            "date": datetime.date.today().isoformat(),
            "faops_version": __version__,
        }
        if _create(path, (json.dumps(content, indent=1) + "\n").encode()):
            return hits.tally(path, written=1)  # the file stands for this call
    tally = hits.tally(path)
    tally.count()
    return tally


def _create(path: Path, content: bytes) -> bool:
    """Write a file that is not there yet, in one go; False for one that is, which is left alone. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        try:
            written = os.write(descriptor, content)
        finally:
            os.close(descriptor)
        if written < len(content):
            raise OSError(f"{path}: only {written} of {len(content)} bytes were written")
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return True


# ---------------------------------------------------------------------------------------------- reading, in a tool


@dataclass(frozen=True)
class Miss:
    """A problem that ran untuned. ``date`` (YYYY-MM-DD) and ``faops_version`` are those of the first such call.

    ``hits`` counts the calls, as far as programs have told: at least half of those they have made.
    """

    problem: AttentionProblem
    key: str
    date: str
    faops_version: str
    path: Path
    hits: int = 1


def waiting(cache: TuningCache, identity: str) -> list[Miss]:
    """The misses of a device in the present environment that have no valid winner yet, sorted by key; :func:`urgent`
    gives the order in which to tune them.

    ``identity`` is the device's, see :class:`DeviceProfile`. Files that are no whole miss are passed over.
    """
    tuned = _tuned_keys(cache, identity)
    return [miss for miss in _read_all(cache, identity) if miss.key not in tuned]


def urgent(found: Iterable[Miss], device: DeviceProfile) -> list[Miss]:
    """Misses of ``device``, that first in which programs have spent the most time: hits × a guess of a call's time."""
    from faops.autotune.measurement.remote import call_seconds  # which takes part in measuring, and no call does

    return sorted(found, key=lambda miss: (-miss.hits * call_seconds(miss.problem, device), miss.key))


def counts(cache: TuningCache) -> dict[str, int]:
    """How many misses are :func:`waiting`, by the identity of the device; devices without any are left out."""
    identities = [path.parents[1].name for path in _files(cache.base, f"*/{environment.directory_name()}/{DIRECTORY}")]
    found = {identity: len(waiting(cache, identity)) for identity in identities}
    return {identity: count for identity, count in found.items() if count}


def settle(cache: TuningCache, identity: str) -> int:
    """Remove the misses of a device that have a winner by now, and their hits; returns how many are left."""
    tuned, left = _tuned_keys(cache, identity), 0
    for miss in _read_all(cache, identity):
        if miss.key in tuned:
            with contextlib.suppress(OSError):  # it is not waiting, there or not
                miss.path.unlink()
        else:
            left += 1
    _remove_lonely_hits(_directory(cache, identity))
    return left


def _remove_lonely_hits(directory: Path) -> None:
    """Remove the hits of which there is no miss in ``directory``: a call may have written them while it went."""
    names = {path.stem for path in _files(directory, "*.json")}
    for path in _files(directory.parent / hits.HITS, "*" + hits.SUFFIX):
        if path.stem not in names:
            with contextlib.suppress(OSError):
                path.unlink()


def clear(cache: TuningCache) -> int:
    """Remove all misses, readable or not, of every device and environment, and all hits; returns how many misses there
    were.

    Raises CacheError where one cannot be removed.
    """
    count = sum(remove(path) for path in _files(cache.base, f"*/*/{DIRECTORY}/*.json"))
    for path in _files(cache.base, f"*/*/{hits.HITS}/*"):
        remove(path)
    return count


def _tuned_keys(cache: TuningCache, identity: str) -> set[str]:
    """Keys of a device that calls find a winner for, in the present environment."""
    present, kernels = environment.versions(), registry.kernels()
    entries = cache.entries(identity)
    return {entry.key for entry in entries if entry.environment == present and serving(entry, kernels)}


def _read_all(cache: TuningCache, identity: str) -> list[Miss]:
    found = [_read(path) for path in _files(_directory(cache, identity), "*.json")]
    return sorted((miss for miss in found if miss is not None), key=lambda miss: miss.key)


def _directory(cache: TuningCache, identity: str) -> Path:
    return cache.base / identity / environment.directory_name() / DIRECTORY


def _files(directory: Path, pattern: str) -> list[Path]:
    """The files below ``directory`` that match, sorted; none where it cannot be read."""
    try:
        return below(directory, pattern)
    except OSError:
        return []


def _read(path: Path) -> Miss | None:
    """The miss in a file; None where there is none that this version of faops knows, or not a whole one."""
    try:
        data = json.loads(read_whole(path))
        if data["schema"] != SCHEMA:
            return None
        problem = AttentionProblem.from_dict(data["problem"])
        if not (is_possible(problem) and problem.flops() > 0):
            return None
        if problem.key() != data["key"] or path.name != file_name(data["key"]):
            return None
        return Miss(problem, data["key"], str(data["date"]), str(data["faops_version"]), path, hits.read(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None
