"""Export, import and merge: what goes in comes out, the better one stays, nothing broken or hostile gets through."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faops import files
from faops.autotune.cache import TuningCache, environment, exchange, load
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.cache.exchange import Offer, compare, export, offers_of_directory, offers_of_text, take
from faops.device import DeviceProfile, known
from faops.errors import CacheError
from faops.problem import AttentionProblem
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry

H200, T4 = known("h200"), known("t4")
OTHER = replace(PROBLEM, head_dim=128)
ELSEWHERE = {**environment.versions(), "torch": "0.1"}


def timed(p50: float, noisy: bool = False, device: DeviceProfile = H200, **changes: Any) -> Entry:
    """An entry whose winner took ``p50`` seconds."""
    config = changes.get("config", Config(block=3))
    timing = Timing("fake.forward", config, 0.9 * p50, p50, 1.1 * p50, 0.01, 10, noisy)
    return make_entry(device, **{"p50": p50, "speedup": 1.0 / p50, "timings": (timing,), **changes})


def offered(*entries: Entry) -> list[Offer]:
    return [Offer(f"entry {number}", entry) for number, entry in enumerate(entries)]


def statuses(cache: TuningCache, offers: Sequence[Offer], **options: Any) -> list[str]:
    return [outcome.status for outcome in take(cache, offers, **options)]


def content(cache: TuningCache) -> dict[str, str]:
    """Text of every entry and manifest, by its place in the cache."""
    return {str(path.relative_to(cache.root)): path.read_text() for path in cache.root.rglob("*.json")}


@pytest.fixture
def other(tmp_path: Path) -> TuningCache:
    return TuningCache(tmp_path / "other")


# --- there and back ---------------------------------------------------------------------------------------------------


def test_what_is_exported_is_imported_as_it_was(cache: TuningCache, other: TuningCache, kernel: FakeKernel) -> None:
    for device, problem in itertools.product((H200, T4), (PROBLEM, OTHER)):
        cache.store(device, make_entry(device, problem))
    text = export(cache, cache.entries())
    outcomes = take(other, offers_of_text(text, "file"))
    assert [outcome.status for outcome in outcomes] == ["imported"] * 4
    assert content(other) == content(cache)  # manifests too
    assert export(other, other.entries()) == text
    assert {outcome.reason for outcome in take(other, offers_of_text(text, "file"))} == {"the same entry is there"}
    assert content(other) == content(cache)


def test_the_file_says_where_its_entries_come_from(cache: TuningCache) -> None:
    cache.store(H200, make_entry(H200))
    document = json.loads(export(cache, cache.entries()))
    assert document["kind"] == exchange.KIND and document["schema"] == exchange.SCHEMA
    assert document["devices"] == {H200.identity: H200.as_dict()}
    assert document["entries"][0]["environment"] == environment.versions()
    assert len(document["date"]) == 10 and document["faops_version"]


def test_an_entry_of_other_software_goes_to_its_own_directory(cache: TuningCache) -> None:
    entry = make_entry(H200, environment=ELSEWHERE)
    assert statuses(cache, [Offer("x", entry, device=H200.as_dict())]) == ["imported"]
    (path,) = cache.files()
    assert path.parents[1].name == environment.name_of(ELSEWHERE)
    manifest = json.loads((path.parents[1] / "manifest.json").read_text())
    assert manifest == {"device": H200.as_dict(), "environment": ELSEWHERE}
    assert cache.entries() == [entry]
    assert cache.load(H200, PROBLEM) is None


def test_merging_a_directory(cache: TuningCache, other: TuningCache) -> None:
    other.store(H200, make_entry(H200))
    broken = other.store(H200, make_entry(H200, OTHER)).path
    assert broken is not None
    broken.write_text(broken.read_text()[:50])
    outcomes = take(cache, offers_of_directory(other.root))
    assert sorted(outcome.status for outcome in outcomes) == ["imported", "refused"]
    (refused,) = [outcome for outcome in outcomes if outcome.status == "refused"]
    assert refused.name == str(broken) and "not whole" in refused.reason
    assert cache.load(H200, PROBLEM) == make_entry(H200)
    assert (cache.directory(H200) / "manifest.json").read_text() == (
        other.directory(H200) / "manifest.json"
    ).read_text()


def test_merging_a_cache_with_itself_changes_nothing(cache: TuningCache) -> None:
    cache.store(H200, make_entry(H200))
    before = content(cache)
    assert statuses(cache, offers_of_directory(cache.root)) == ["kept"]
    assert content(cache) == before


def test_a_directory_that_is_no_cache(tmp_path: Path, cache: TuningCache) -> None:
    with pytest.raises(CacheError, match="no cache of faops: it has no directory tune/v1"):
        offers_of_directory(tmp_path)


def test_a_dry_run_says_the_same_and_writes_nothing(cache: TuningCache, kernel: FakeKernel) -> None:
    offers = offered(timed(0.5), timed(0.4), timed(0.6), make_entry(H200, OTHER))
    planned = statuses(cache, offers, dry_run=True)
    assert planned == ["imported", "imported", "kept", "imported"]
    assert not cache.root.exists()
    assert statuses(cache, offers) == planned


# --- the better one ---------------------------------------------------------------------------------------------------

# Each pair: the better entry, the worse one, and why.
BETTER = [
    (timed(0.9), timed(0.1, source_hash="other"), "for the kernel that is installed"),
    (timed(0.9, driver="2"), timed(0.1, driver="1"), "measured with this driver"),
    (timed(0.9), timed(0.1, driver="1"), "measured with this driver"),
    (timed(0.9), timed(0.1, noisy=True), "less noisy"),
    (timed(0.9), replace(timed(0.1), timings=()), "less noisy"),
    (timed(0.4), timed(0.5), "faster"),
    (timed(0.4), timed(0.5, date="2026-12-01"), "faster"),
    (timed(0.5, date="2026-12-01"), timed(0.5), "newer"),
]


@pytest.mark.parametrize(("better", "worse", "why"), BETTER)
def test_the_better_one_stays(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, better: Entry, worse: Entry, why: str
) -> None:
    monkeypatch.setattr(environment, "driver", lambda vendor: "2" if vendor == "nvidia" else "")
    for order in ((better, worse), (worse, better)):
        cache.clear()
        outcomes = take(cache, offered(*order))
        assert cache.load(H200, PROBLEM) == better
        assert why in outcomes[1].reason
        assert [outcome.status for outcome in outcomes] == ["imported", "kept" if order[0] is better else "imported"]


def test_sizes_of_one_key_are_compared_by_the_work_done(cache: TuningCache, kernel: FakeKernel) -> None:
    """Half the length is a quarter of the work, so half the time is slower."""
    small = replace(PROBLEM, seqlen_q=65, seqlen_k=65)
    assert small.key() == PROBLEM.key()
    large, half = timed(0.4), replace(timed(0.2), problem=small.as_dict())
    assert compare(large, half) == (True, "faster than what was there")
    assert compare(half, large) == (False, "what is there is faster")


def test_a_problem_without_work_can_be_compared(kernel: FakeKernel) -> None:
    empty = replace(PROBLEM, seqlen_k=0)
    one, two = (replace(timed(p50), key=empty.key(), problem=empty.as_dict()) for p50 in (0.4, 0.5))
    assert compare(one, two)[0] and not compare(two, one)[0]


def test_of_two_that_are_as_good_one_stays_in_either_order(cache: TuningCache, kernel: FakeKernel) -> None:
    pair = [timed(0.5, config=Config(block=block)) for block in (1, 3)]
    for order in (pair, pair[::-1]):
        cache.clear()
        take(cache, offered(*order))
        assert cache.load(H200, PROBLEM) == pair[1]


VARIANTS = [
    timed(p50, noisy, source_hash=source, date=date, config=config)
    for p50 in (0.25, 0.5)
    for noisy in (False, True)
    for source in ("source", "other")
    for date in ("2026-11-20", "2026-11-21")
    for config in (Config(block=1), Config(block=3))
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.lists(st.sampled_from(VARIANTS), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_the_order_of_imports_does_not_matter(
    tmp_path: Path, kernel: FakeKernel, chosen: list[Entry], seed: int
) -> None:
    """Commutative, associative and idempotent: any way to bring the same entries together gives the same cache."""
    name = random.randrange(1 << 60)
    one, two, three = (TuningCache(tmp_path / f"{name}-{number}") for number in range(3))
    take(one, offered(*chosen))
    take(two, offered(*random.Random(seed).sample(chosen, len(chosen))))
    for entry in chosen:
        take(three, offered(entry))
        take(three, offers_of_text(export(three, three.entries()), "itself"))
    assert content(one) == content(two) == content(three)
    take(one, offers_of_directory(two.root))
    assert content(one) == content(two)


# --- broken and hostile files -----------------------------------------------------------------------------------------


def document(*entries: Any, **changes: Any) -> str:
    return json.dumps({"kind": exchange.KIND, "schema": 1, "devices": {}, "entries": list(entries), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ('{"kind": "faops', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not written by"),
        ('{"entries": []}', "not written by"),
        (document(schema=2), "newer faops"),
        (document(schema=True), "newer faops"),
        (document(schema="\x1b[31m"), r"schema \?\[31m"),
        (document(entries={}), "damaged"),
        (document(devices=[]), "damaged"),
    ],
)
def test_what_is_no_exported_file_is_refused(text: str, words: str) -> None:
    with pytest.raises(CacheError, match=words):
        offers_of_text(text, "file.json")


GOOD = make_entry(H200).as_dict()
HOSTILE: dict[str, Any] = {
    "a way out by the device": {**GOOD, "device": "../../../outside"},
    "a way out by the environment": {**GOOD, "environment": {}},
    "an absolute device": {**GOOD, "device": "/tmp/outside"},
    "escape codes": {**GOOD, "kernel": "fake.forward\x1b[2J"},
    "a key of another problem": {**GOOD, "key": make_entry(H200, OTHER).key},
    "a newer schema": {**GOOD, "schema": environment.SCHEMA + 1},
    "no number": {**GOOD, "p50": float("nan")},
    "no positive number": {**GOOD, "p50": -1},
    "no entry": "entry",
    "nothing": None,
    "deep": json.loads("[" * 200 + "]" * 200),
    "a long device": {**GOOD, "device": "a" * 5000},
    "a long environment": {**GOOD, "environment": {"torch": "1" * 5000}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_bad_entry_is_refused_and_the_others_are_imported(
    cache: TuningCache, tmp_path: Path, kernel: FakeKernel, name: str
) -> None:
    before = set(tmp_path.rglob("*"))
    good = make_entry(H200, OTHER)
    outcomes = take(cache, offers_of_text(document(HOSTILE[name], good.as_dict()), "file"))
    assert [outcome.status for outcome in outcomes] == ["refused", "imported"]
    assert outcomes[0].reason and "\x1b" not in outcomes[0].reason
    assert cache.entries() == [good]
    outside = [path for path in set(tmp_path.rglob("*")) - before if not path.is_relative_to(cache.root)]
    assert outside == []
    assert all(path.is_relative_to(cache.directory(H200)) for path in cache.root.rglob("*.json"))


def test_a_config_that_the_kernel_has_not_is_refused(cache: TuningCache, kernel: FakeKernel) -> None:
    profile = H200.as_dict()
    offers = [Offer("x", make_entry(H200, config=Config(other=3)), device=profile)]
    (outcome,) = take(cache, offers)
    assert outcome.status == "refused" and "no config like [other=3]" in outcome.reason
    unknown = make_entry(H200, config=Config(other=3), source_hash="other code")
    assert statuses(cache, [Offer("x", unknown, device=profile)]) == ["imported"]  # nobody here can tell


@pytest.mark.parametrize(
    "change", [{"name": "another"}, {"units": "132"}, {"units": True}, {"colour": 1}, {"bandwidth": None}]
)
def test_a_profile_that_is_not_the_devices_is_not_written(
    cache: TuningCache, kernel: FakeKernel, change: dict[str, Any]
) -> None:
    devices = {H200.identity: {**H200.as_dict(), **change}}
    assert statuses(cache, offers_of_text(document(GOOD, devices=devices), "file")) == ["imported"]
    assert not list(cache.root.rglob("manifest.json"))
    devices = {H200.identity: {"vendor": "nvidia"}}
    assert statuses(cache, offers_of_text(document(GOOD, devices=devices), "file")) == ["kept"]


def test_what_must_not_be_overwritten_stays(cache: TuningCache, kernel: FakeKernel) -> None:
    path = cache.place(make_entry(H200))
    path.parent.mkdir(parents=True)
    for text, words in (
        (json.dumps({**GOOD, "schema": environment.SCHEMA + 1}), "newer faops"),
        ('{"name": "something else"}', "faops cache clear"),
    ):
        path.write_text(text)
        for dry_run in (True, False):
            (outcome,) = take(cache, offered(make_entry(H200)), dry_run)
            assert outcome.status == "refused" and words in outcome.reason
        assert path.read_text() == text
    path.write_text('{"half')
    assert statuses(cache, offered(make_entry(H200))) == ["imported"]


def test_a_full_disk_loses_nothing(cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(H200, timed(0.5))
    before = content(cache)
    written: list[int] = []
    original = os.fsync

    def second_fails(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) >= 2:
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(files.os, "fsync", second_fails)
    outcomes = take(cache, offered(make_entry(H200, OTHER), timed(0.4), timed(0.3)))
    assert [outcome.status for outcome in outcomes] == ["imported", "refused", "refused"]
    assert "No space left" in outcomes[1].reason
    assert content(cache).items() >= before.items()
    assert len(cache.entries()) == 2


def test_a_better_entry_that_comes_meanwhile_is_not_overwritten(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the comparison and the rename another process stores a winner; both comparisons count."""
    cache.store(H200, timed(0.5))
    original, stored = os.fsync, []

    def meanwhile(descriptor: int) -> None:
        original(descriptor)
        if not stored:
            stored.append(True)
            cache.store(H200, timed(0.1))

    monkeypatch.setattr(files.os, "fsync", meanwhile)
    (outcome,) = take(cache, offered(timed(0.3)))
    assert (outcome.status, outcome.reason) == ("kept", "what is there is faster")
    assert cache.load(H200, PROBLEM) == timed(0.1)
    assert not list(cache.root.rglob(f"*{files.TEMPORARY_SUFFIX}"))


def test_imported_entries_are_read_as_all_others(cache: TuningCache, kernel: FakeKernel) -> None:
    take(cache, offered(make_entry(H200)))
    (path,) = cache.files()
    assert load(path) == make_entry(H200)
    assert AttentionProblem.from_dict(json.loads(path.read_text())["problem"]) == PROBLEM
