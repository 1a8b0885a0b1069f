"""`faops cache prune --stale`, and what `faops cache ls` says of a winner that another driver ran."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from faops.autotune.cache import TuningCache, environment
from faops.backends.cuda_raw import cubin_cache
from faops.device import known
from faops.problem import parse_shape
from tests.autotune.support import make_entry
from tests.cli.conftest import Faops
from tests.cli.support import document, refused

H200 = known("h200")
OLD, NEW = (parse_shape(f"sq={length},h=2,d=16") for length in (16, 512))


@pytest.fixture
def entries() -> None:
    """Two entries of a kernel that there is no more, one of them old."""
    weeks_ago = (datetime.date.today() - datetime.timedelta(weeks=4)).isoformat()
    TuningCache().store(H200, make_entry(H200, OLD, date="2020-01-01"))
    TuningCache().store(H200, make_entry(H200, NEW, date=weeks_ago))


@pytest.mark.usefixtures("entries")
def test_stale_entries_are_listed_and_removed(faops: Faops) -> None:
    planned = faops("cache", "prune", "--stale", "--dry-run").stdout
    assert OLD.key() in planned and "kernel gone" in planned
    assert planned.endswith(f"2 files would be removed from {TuningCache().root}\n")
    assert len(TuningCache().entries()) == 2
    removed = document(faops("cache", "prune", "--stale", "--older-than", "12w", "--json"))["removed"]
    assert [item["key"] for item in removed] == [OLD.key()]
    assert not Path(removed[0]["path"]).exists()
    assert faops("cache", "prune", "--stale").stdout.endswith(f"1 file removed from {TuningCache().root}\n")
    assert faops("cache", "prune", "--stale").stdout == f"nothing to remove in {TuningCache().root}\n"


@pytest.mark.usefixtures("entries")
def test_prune_without_stale_leaves_entries(faops: Faops) -> None:
    assert "compiled kernels" in faops("cache", "prune").stdout
    assert len(TuningCache().entries()) == 2
    assert cubin_cache.usage() == (0, 0)


def test_options_that_do_not_go_together(faops: Faops) -> None:
    refused(faops("cache", "prune", "--dry-run"), "--stale", code=2)
    refused(faops("cache", "prune", "--older-than", "90d"), "--stale", code=2)
    refused(faops("cache", "prune", "--stale", "--max-mb", "3"), "--max-mb", code=2)
    for age in ("soon", "-3d", "3y", ""):
        refused(faops("cache", "prune", "--stale", "--older-than", age), "number of days", code=2)


def test_ls_marks_what_another_driver_ran(faops: Faops, entries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.autotune.cache.serving", lambda entry, kernels: object())
    monkeypatch.setattr(environment, "driver", lambda vendor: "570.1" if vendor == "nvidia" else "")
    TuningCache().store(H200, make_entry(H200, NEW, driver="535.5"))
    listed = {row["key"]: row for row in document(faops("cache", "ls", "--json"))["entries"]}
    assert listed[NEW.key()]["recheck"] == "measured with driver 535.5, this is 570.1"
    assert listed[NEW.key()]["used"] and listed[OLD.key()]["recheck"] == ""
    text = faops("cache", "ls").stdout
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("forward/")] == ["yes", "re-check"]
    assert "1 entry was measured with driver 535.5, this is 570.1" in text
