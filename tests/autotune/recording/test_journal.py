"""Journals: written as things happen, read back whatever is left of them, and what a resumed search makes of them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import files
from faops.autotune.effort import FINAL, QUICK, Budget
from faops.autotune.recording import journal
from faops.autotune.recording.journal import (
    Header,
    Journal,
    JournaledBench,
    Record,
    header_of,
    path_of,
    read,
    resumable,
)
from faops.autotune.search.candidates import Candidate, Space
from faops.autotune.search.strategies import search
from faops.autotune.search.trial import RememberedError
from faops.device import known
from faops.errors import CrashedError, TuningError
from faops.registry import Config

from ..support import PROBLEM, FakeBench, FakeKernel, steady

H200 = known("h200")
KERNEL = FakeKernel(blocks=12)
FIRST, *OTHERS = (Candidate(KERNEL, Config(block=block)) for block in range(12))
SPACE = Space((FIRST,), (), tuple(OTHERS))
HEADER = header_of(PROBLEM, H200, SPACE, "halving")
RECORDS = [
    Record("fake.forward", Config(block=1), QUICK, (1e-3, 1.25e-3)),
    Record("fake.forward", Config(block=2, mode="fast", split=True), FINAL, (), "crashed", "CrashedError: SIGSEGV"),
    Record("fake.forward", Config(block=1), None),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_of(tmp_path, PROBLEM.key())


def written(path: Path, *records: Record) -> Journal:
    made = Journal(path, HEADER)
    for record in records:
        made.append(record)
    return made


def test_what_is_written_is_read_back(path: Path) -> None:
    written(path, *RECORDS).close()
    assert read(path) == (HEADER, RECORDS)
    assert resumable(path, HEADER) == RECORDS
    assert path.parent.name == "journal"


def test_a_record_is_on_disk_when_append_returns(path: Path) -> None:
    made = Journal(path, HEADER)
    for count, record in enumerate(RECORDS, 1):
        made.append(record)
        assert read(path)[1] == RECORDS[:count]


def test_each_line_is_one_system_call(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    original = os.write

    def write(descriptor: int, data: bytes) -> int:
        calls.append(data)
        return original(descriptor, data)

    made = Journal(path, HEADER)
    monkeypatch.setattr(journal.os, "write", write)
    made.append(replace(RECORDS[0], samples=(1e-3,) * 10_000))
    assert len(calls) == 1
    assert calls[0].endswith(b"\n")


@settings(max_examples=40)
@given(cut=st.integers(min_value=0, max_value=10_000))
def test_any_part_of_a_journal_gives_what_is_whole_in_it(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = path_of(tmp_path_factory.mktemp("cut"), PROBLEM.key())
    written(path, *RECORDS).close()
    whole = path.read_bytes()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    found = resumable(path, HEADER)
    assert found in (RECORDS[: max(0, lines - 1)], RECORDS[:lines])  # a line may be whole but for its end
    again = Journal(path, HEADER, found)  # half a line must not spoil the next
    again.append(RECORDS[0])
    assert read(path) == (HEADER, [*found, RECORDS[0]])


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe", b"{}", b'{"kernel": "fake.forward"}', b"[" * 5000,
        json.dumps({"kernel": "k", "config": {}, "budget": [1], "samples": [1.0]}).encode(),
        json.dumps({"kernel": "k", "config": [1], "budget": None, "samples": []}).encode(),
        json.dumps({"kernel": "k", "config": {"a": []}, "budget": None, "samples": []}).encode(),
        json.dumps({"kernel": "k", "config": {}, "budget": [1, 2, 3, 4], "samples": [0.0]}).encode(),
        json.dumps({"kernel": "k", "config": {}, "budget": [1, 2, 3, 4], "samples": []}).encode(),
        b'{"kernel": "k", "config": {}, "budget": [1, 2, 3, 4], "samples": [NaN]}',
        b'{"kernel": "k", "config": {}, "budget": [1, 2, 3, 4], "samples": [1' + b"0" * 400 + b"]}",
    ],
)  # fmt: skip
def test_lines_that_are_no_records_are_left_out(path: Path, line: bytes) -> None:
    written(path, RECORDS[0]).close()
    path.write_bytes(path.read_bytes() + line + b"\n" + RECORDS[2].to_line().encode())
    assert resumable(path, HEADER) == [RECORDS[0], RECORDS[2]]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[]\n", b"\xff\xff\n", b'{"journal": 1}\n', b"[" * 5000])
def test_a_file_that_is_no_journal_counts_for_nothing(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content + RECORDS[0].to_line().encode())
    assert resumable(path, HEADER) == []
    with pytest.raises(ValueError):
        read(path)


def test_nothing_or_a_pipe_in_its_place(path: Path) -> None:
    assert resumable(path, HEADER) == []
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert resumable(path, HEADER) == []  # and does not wait for a writer


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "another"}, {"device": "another"}, {"environment": {"torch": "1.0"}}, {"provenance": "modelled"},
        {"journal": 2}, {"sources": {"fake.forward": "changed"}}, {"sources": {}},
    ],
)  # fmt: skip
def test_what_was_measured_under_other_circumstances_does_not_count(path: Path, changes: dict[str, Any]) -> None:
    Journal(path, replace(HEADER, **changes), RECORDS).close()
    assert resumable(path, HEADER) == []


def test_another_strategy_and_date_do_not_matter(path: Path) -> None:
    Journal(path, replace(HEADER, strategy="random", date="2020-01-01", faops_version="0"), RECORDS).close()
    assert resumable(path, HEADER) == RECORDS


def test_records_of_a_kernel_whose_code_changed_are_left_out(path: Path) -> None:
    other = Record("fake.other", Config(block=1), QUICK, (1e-3,))
    Journal(path, replace(HEADER, sources={**HEADER.sources, "fake.other": "old"}), [*RECORDS, other]).close()
    assert resumable(path, replace(HEADER, sources={**HEADER.sources, "fake.other": "new"})) == RECORDS


def test_a_header_survives_its_line() -> None:
    assert Header.from_line(HEADER.to_line()) == HEADER
    assert HEADER.sources == {"fake.forward": "source"}
    assert HEADER.defaults == ({"kernel": "fake.forward", "config": {"block": 0}},)


# ---------------------------------------------------------------------------------------------- the bench


def candidate(block: int) -> Candidate:
    return Candidate(KERNEL, Config(block=block))


def resumed(path: Path, inner: Any) -> JournaledBench:
    """A bench that answers from the journal at ``path`` first, and begins it anew."""
    records = resumable(path, HEADER)
    return JournaledBench(inner, Journal(path, HEADER, records), records)


def test_the_bench_writes_before_it_answers_and_answers_from_what_was_written(path: Path) -> None:
    inner = FakeBench(lambda item: steady(1 / 3))
    bench = JournaledBench(inner, Journal(path, HEADER))
    first = bench.sample(FIRST, QUICK)
    second = bench.sample(FIRST, QUICK)
    bench.check(FIRST)
    assert [record.samples for record in read(path)[1]] == [first, second, ()]
    again = resumed(path, FakeBench(lambda item: [9.0]))
    assert again.sample(FIRST, FINAL) == (9.0,)  # another budget is another question
    assert (again.sample(FIRST, QUICK), again.sample(FIRST, QUICK), again.reused) == (first, second, 2)
    again.check(FIRST)
    assert again.sample(FIRST, QUICK) == (9.0,)
    assert again.reused == 2


def test_samples_are_rounded_alike_now_and_later(path: Path) -> None:
    bench = JournaledBench(FakeBench(lambda item: [1 / 3, 2e-5 / 3]), Journal(path, HEADER))
    assert bench.sample(FIRST, QUICK) == (0.333333, 6.66667e-06)


def test_failures_are_remembered_with_their_kind(path: Path) -> None:
    def samples(item: Candidate) -> list[float]:
        raise CrashedError("SIGSEGV")

    bench = JournaledBench(FakeBench(samples, wrong=lambda item: True), Journal(path, HEADER))
    with pytest.raises(CrashedError):
        bench.sample(FIRST, QUICK)
    with pytest.raises(TuningError, match="wrong result"):
        bench.check(FIRST)
    again = resumed(path, FakeBench(lambda item: steady(1.0)))
    with pytest.raises(RememberedError, match="CrashedError: SIGSEGV") as crashed:
        again.sample(FIRST, QUICK)
    with pytest.raises(RememberedError, match="TuningError: wrong result") as wrong:
        again.check(FIRST)
    assert (crashed.value.kind, wrong.value.kind, again.reused) == ("crashed", "wrong", 1)


def test_an_interrupt_is_no_failure(path: Path) -> None:
    def samples(item: Candidate) -> list[float]:
        raise KeyboardInterrupt

    bench = JournaledBench(FakeBench(samples), Journal(path, HEADER))
    with pytest.raises(KeyboardInterrupt):
        bench.sample(FIRST, QUICK)
    assert read(path)[1] == []


def troubled(item: Candidate, budget: Budget, number: int) -> list[float]:
    """Times that depend on how often was asked, and some failures."""
    block = item.config.integer("block")
    if block == 3:
        raise CrashedError("SIGSEGV")
    if block == 5 and budget is FINAL:
        raise RuntimeError("overheated")
    return steady((1.0 - 0.03 * block) * (1 + 0.001 * number))


class Troubled(FakeBench):
    """A deterministic bench; after ``patience`` questions it is interrupted."""

    def __init__(self, patience: float = float("inf")) -> None:
        super().__init__(lambda item: [], wrong=lambda item: item.config == Config(block=11))
        self.patience = patience
        self.asked: dict[tuple[Candidate, Budget], int] = {}

    def sample(self, item: Candidate, budget: Budget) -> list[float]:
        self._ask()
        self.timed.append((item, budget))
        number = self.asked[item, budget] = self.asked.get((item, budget), 0) + 1
        return troubled(item, budget, number)

    def check(self, item: Candidate) -> None:
        self._ask()
        super().check(item)

    def _ask(self) -> None:
        if self.patience <= 0:
            raise KeyboardInterrupt
        self.patience -= 1


@pytest.mark.parametrize("patience", range(0, 33, 3))
def test_an_interrupted_search_that_is_resumed_ends_like_one_that_was_not(path: Path, patience: int) -> None:
    undisturbed = Troubled()
    expected = search(SPACE, JournaledBench(undisturbed, Journal(path.with_name("other"), HEADER)))
    broken_off = JournaledBench(Troubled(patience), Journal(path, HEADER))
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, broken_off)
    records = resumable(path, HEADER)
    assert len(records) == patience
    rest = Troubled()
    rest.asked = {
        (item, budget): count
        for item in SPACE.all
        for budget in (QUICK, FINAL)
        if (count := sum(r.budget == budget and r.config == item.config for r in records))
    }
    bench = resumed(path, rest)
    found = search(SPACE, bench)
    assert found == expected
    assert len(rest.timed) + len(rest.checked) == len(undisturbed.timed) + len(undisturbed.checked) - patience
    assert bench.reused == sum(record.budget is not None for record in records)
    assert len(resumable(path, HEADER)) == len(undisturbed.timed) + len(undisturbed.checked)


# ---------------------------------------------------------------------------------------------- trouble on the disk


def refuse(code: int) -> Callable[..., Any]:
    def raise_it(*args: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return raise_it


def test_a_full_disk_ends_the_journal_and_not_the_search(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(path, RECORDS[0])
    with monkeypatch.context() as full:
        full.setattr(journal.os, "write", refuse(errno.ENOSPC))
        made.append(RECORDS[1])
    made.append(RECORDS[2])  # there is room again, but a gap would be taken for the order of things
    assert read(path)[1] == RECORDS[:1]
    made.close()


def test_half_a_line_on_a_full_disk_ends_the_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    made = written(path, RECORDS[0])
    with monkeypatch.context() as full:
        full.setattr(journal.os, "write", lambda descriptor, data: original(descriptor, data[:10]))
        made.append(RECORDS[1])
    made.append(RECORDS[2])
    assert read(path)[1] == RECORDS[:1]
    made.close()


def test_a_cache_that_cannot_be_written_has_no_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "replace", refuse(errno.EROFS))
    made = written(path, *RECORDS)
    assert not path.exists()
    made.remove()
    in_the_way = path_of(path, PROBLEM.key())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    written(in_the_way, *RECORDS).close()


def test_a_removed_journal_is_gone(path: Path) -> None:
    made = written(path, *RECORDS)
    made.remove()
    assert list(path.parent.iterdir()) == []
    made.append(RECORDS[0])
    made.remove()
    assert list(path.parent.iterdir()) == []
