"""Winners from one cache to another: a JSON file of entries, each checked as strictly as one that is read at call time.

For one problem on one device with one set of software the better of two entries is kept. Which one that is does not
depend on the order in which they come, so merging is idempotent and commutative.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

from faops import registry
from faops._version import __version__
from faops.architectures import MIB
from faops.autotune.cache import (
    MANIFEST,
    UNREADABLE,
    TuningCache,
    load,
    needs_recheck,
    parse,
    present,
    reason_of,
    serving,
)
from faops.autotune.cache.entry import Entry
from faops.autotune.cache.validation import plain, suits
from faops.device import DeviceProfile
from faops.errors import CacheError
from faops.files import Signature, read_whole, signature, write_whole

KIND = "faops tuning cache"
SCHEMA = 1  # of the file around the entries
LARGEST = 128 * MIB  # bytes of such a file: some thousand entries
LOCK_SECONDS = 60.0  # to wait for another import into the same cache

Status = Literal["imported", "kept", "refused"]


@dataclass(frozen=True)
class Offer:
    """An entry that may be imported, or the ``reason`` why what was found is none. ``name`` says which it is."""

    name: str
    entry: Entry | None = None
    reason: str = ""
    device: dict[str, Any] | None = None  # profile, where it came along


@dataclass(frozen=True)
class Outcome:
    """What became of an offer. "kept": what the cache has is as good; "refused": it is no valid entry, or the cache
    cannot take it. ``key`` and ``device`` are "" where the offer has none that can be read."""

    status: Status
    name: str
    key: str
    device: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


# ---------------------------------------------------------------------------------------------- export


def export(cache: TuningCache, entries: Iterable[Entry]) -> str:
    """The text of a file with ``entries`` of ``cache`` and the profiles of their devices."""
    entries = sorted(entries, key=lambda entry: (entry.device, str(entry.path), entry.key))
    devices = {entry.device: _profile_beside(cache.place(entry), entry.device) for entry in entries}
    document = {
        "kind": KIND,
        "schema": SCHEMA,
        "faops_version": __version__,
        "date": datetime.date.today().isoformat(),
        "devices": {identity: profile for identity, profile in devices.items() if profile is not None},
        "entries": [entry.as_dict() for entry in entries],
    }
    return json.dumps(document, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    """Write an exported file. Raises CacheError, also where something else than such a file would be overwritten."""
    if os.path.lexists(path) and not _is_export(path):
        raise CacheError(f"{path} is there and is no exported file: nothing is overwritten; name another file")
    try:
        write_whole(path, text)
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror or error}") from None


def _is_export(path: Path) -> bool:
    """Whether there is a regular file, not a link to one, that was exported."""
    try:
        return not path.is_symlink() and bool(_document(read_whole(path, LARGEST), str(path)))
    except (CacheError, *UNREADABLE):
        return False


def _profile_beside(path: Path, identity: str) -> dict[str, Any] | None:
    """The device's profile from the manifest of the directory that an entry lies in."""
    try:
        content = json.loads(read_whole(path.parents[1] / MANIFEST))
    except UNREADABLE:
        return None
    return _profile(content.get("device") if isinstance(content, dict) else None, identity)


def _profile(data: object, identity: str) -> dict[str, Any] | None:
    """``data``, if it is the profile of the device with this identity."""
    profile = _as_profile(data)
    return profile.as_dict() if profile is not None and profile.identity == identity else None


def _as_profile(data: object) -> DeviceProfile | None:
    names = {item.name: item.type for item in fields(DeviceProfile)}
    if not isinstance(data, dict) or not data.keys() <= names.keys():
        return None
    kinds: dict[Any, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    if any(type(value) not in kinds[names[name]] for name, value in data.items()):
        return None
    try:
        return DeviceProfile(**data)
    except TypeError:  # a field is missing
        return None


# ---------------------------------------------------------------------------------------------- what is offered


def offers_of_file(path: Path) -> list[Offer]:
    """The entries in an exported file. Raises CacheError if it cannot be read or is no such file."""
    try:
        text = read_whole(path, LARGEST)
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise CacheError(f"{path} is not text in UTF-8") from None
    return offers_of_text(text, str(path))


def text_of(stream: BinaryIO, name: str) -> str:
    """All text of a stream called ``name``. Raises CacheError if it is too long or no text."""
    content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise CacheError(f"{name} is larger than {LARGEST / MIB:g} MiB")
    try:
        return content.decode("utf-8")
    except ValueError:
        raise CacheError(f"{name} is not text in UTF-8") from None


def offers_of_text(text: str, name: str) -> list[Offer]:
    """The entries in the text of an exported file called ``name``. Raises CacheError if it is no such file."""
    document = _document(text, name)
    devices = document["devices"]
    return [_offer(item, f"{name}, entry {number}", devices) for number, item in enumerate(document["entries"], 1)]


def _document(text: str, name: str) -> dict[str, Any]:
    """What an exported file holds, with its "entries" and "devices". Raises CacheError if it is no such file."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise CacheError(f"{name} is not JSON, or not all of it") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise CacheError(f'{name} was not written by `faops cache export`: there is no "kind": "{KIND}" in it')
    schema, entries, devices = document.get("schema"), document.get("entries"), document.get("devices")
    if type(schema) is not int or schema > SCHEMA:
        raise CacheError(f"{name} was written by a newer faops (schema {plain(str(schema))}, this one reads {SCHEMA})")
    if not isinstance(entries, list) or not isinstance(devices, dict):
        raise CacheError(f"{name} is damaged: it has no list of entries or of devices")
    return document


def _offer(item: object, name: str, devices: Mapping[str, object]) -> Offer:
    try:
        entry = parse(json.dumps(item))
    except UNREADABLE as error:
        return Offer(name, reason=reason_of(error))
    return Offer(name, entry, device=_profile(devices.get(entry.device), entry.device))


def offers_of_directory(root: Path) -> list[Offer]:
    """The entries of the cache under ``root``. Raises CacheError if there is none."""
    other = TuningCache(root)
    if not other.base.is_dir():
        raise CacheError(f"{root} is no cache of faops: it has no directory {other.base.relative_to(root)}")
    return [_offer_at(path) for path in other.files()]


def _offer_at(path: Path) -> Offer:
    try:
        entry = load(path)
    except UNREADABLE as error:
        return Offer(str(path), reason=reason_of(error))
    return Offer(str(path), entry, device=_profile_beside(path, entry.device))


# ---------------------------------------------------------------------------------------------- which is better


def standing(entry: Entry) -> tuple[Any, ...]:
    """Larger for the better of two entries of one key on one device with the same software; equal for equal ones only.

    In this order: its kernel is the one that is installed here; it was measured with the driver that is here; its
    winner's timing is not noisy; its winner computes more FLOP/s (entries of one key may differ in sizes; where they do
    not, that is the shorter median); it is newer. The text decides what is left, so that order does not.
    """
    serves = serving(entry, registry.kernels()) is not None
    work = max(1, entry.attention_problem().flops())
    return (
        serves,
        not needs_recheck(entry, entry.device),
        _is_clean(entry),
        work / entry.p50,
        entry.date,
        entry.to_json(),
    )


STANDING = (
    "for the kernel that is installed",
    "measured with this driver",
    "less noisy",
    "faster",
    "newer",
    "different",
)


def _is_clean(entry: Entry) -> bool:
    """Whether the winner was timed, and its timing is not noisy."""
    own = [timing for timing in entry.timings if (timing.kernel, timing.config) == (entry.kernel, entry.config)]
    return bool(own) and not any(timing.noisy for timing in own)


def compare(entry: Entry, present: Entry) -> tuple[bool, str]:
    """Whether ``entry`` is better than ``present``, and what makes the better one better."""
    one, two = standing(entry), standing(present)
    if one == two:
        return False, "the same entry is there"
    words = next(words for words, left, right in zip(STANDING, one, two) if left != right)
    return (True, f"{words} than what was there") if one > two else (False, f"what is there is {words}")


# ---------------------------------------------------------------------------------------------- import


@dataclass
class _Import:
    """One import into ``cache``; ``planned`` is what a dry run would have written."""

    cache: TuningCache
    dry_run: bool
    planned: dict[Path, Entry] = field(default_factory=dict)

    def take(self, offer: Offer) -> Outcome:
        entry = offer.entry
        if entry is None:
            return Outcome("refused", offer.name, "", "", offer.reason)
        if reason := _mismatch(entry, offer.device):
            return Outcome("refused", offer.name, entry.key, entry.device, reason)
        try:
            status, reason = self._decide(entry, offer.device)
        except CacheError as error:
            status, reason = "refused", str(error)
        return Outcome(status, offer.name, entry.key, entry.device, reason)

    def _decide(self, entry: Entry, device: dict[str, Any] | None) -> tuple[Status, str]:
        """Write ``entry`` if it is better than what the cache has; look again if that changes meanwhile."""
        path = self.cache.place(entry)
        while True:
            seen = signature(path)
            there = self.planned.get(path) or present(path)
            better, reason = (True, "") if there is None else compare(entry, there)
            if not better:
                return "kept", reason
            if self.dry_run:
                self.planned[path] = entry
            elif self.cache.put(entry, device, _unchanged(path, seen)).path is None:
                continue
            return "imported", reason


def _unchanged(path: Path, seen: Signature | None) -> Callable[[], bool]:
    return lambda: signature(path) == seen


def _mismatch(entry: Entry, device: dict[str, Any] | None) -> str:
    """Why the kernel could not run the entry's config, as far as this machine can tell; "" if nothing is against it."""
    kernel, profile, problem = serving(entry, registry.kernels()), _as_profile(device), entry.attention_problem()
    if kernel is None or profile is None or not kernel.check(problem, profile):
        return ""
    default = kernel.default_config(problem, profile)
    fits = suits(entry.config, kernel, default, problem, profile)
    return "" if fits else f"{entry.kernel} has no config like [{plain(str(entry.config))}]"


def take(cache: TuningCache, offers: Sequence[Offer], dry_run: bool = False) -> list[Outcome]:
    """Import what is better than what ``cache`` has; one outcome for each offer. Nothing is written on a ``dry_run``.

    Every entry is written as a whole or not at all. Raises CacheError when another import goes on for too long.
    """
    importing = _Import(cache, dry_run)
    with contextlib.nullcontext() if dry_run else _alone(cache):
        return [importing.take(offer) for offer in offers]


@contextlib.contextmanager
def _alone(cache: TuningCache) -> Iterator[None]:
    """Hold the lock that keeps two imports from each overwriting the better entry of the other.

    Where the cache cannot be written there is nothing to lock.
    """
    import filelock

    lock = filelock.FileLock(cache.base / "import.lock")
    with contextlib.suppress(OSError, NotImplementedError):
        cache.base.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout:
            raise CacheError(f"another import into {cache.root} takes longer than {LOCK_SECONDS:g} s") from None
    try:
        yield
    finally:
        lock.release()
