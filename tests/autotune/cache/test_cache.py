"""The tuning cache on disk: keys and directories, damaged files, full and forbidden directories."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from faops import files, settings
from faops.autotune import cache as cache_module
from faops.autotune.cache import TuningCache, environment, lookup, stamp
from faops.autotune.cache.entry import Entry, file_name
from faops.device import known
from faops.errors import CacheError, FaopsWarning
from faops.problem import AttentionProblem, Band
from faops.registry import Config

from ..support import PROBLEM, FakeKernel, make_entry

H200 = known("h200")

# Another value for every field of a problem: each may change the fastest config, so each must change the key.
OTHER_PROBLEM: dict[str, Any] = {
    "op": "backward", "dtype": "bfloat16", "batch": 4, "seqlen_q": 512, "seqlen_k": 512, "heads_q": 8, "heads_kv": 1,
    "head_dim": 96, "head_dim_v": 128, "layout": "varlen", "band": Band(-1, 0), "softcap": True, "alibi": True,
    "bias": ".hmn", "mask": "b..n", "sinks": True, "dropout": True, "need_lse": True, "lse_grad": True,
    "bias_grad": True, "deterministic": True, "fp8_descale": True, "page_size": 16, "append": True, "rotary": "half",
    "leftpad": True, "batch_index": True,
}  # fmt: skip

OTHER_DEVICE: dict[str, Any] = {
    "vendor": "amd", "arch": "sm_91", "name": "NVIDIA H201", "units": 66, "l2_bytes": 1 << 20,
    "shared_bytes": 64 << 10, "mig": "1g.18gb", "threads": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", [item.name for item in fields(AttentionProblem)])
def test_every_field_of_a_problem_is_in_the_key(name: str) -> None:
    other = replace(PROBLEM, **{name: OTHER_PROBLEM[name]})
    assert other.key() != PROBLEM.key()
    assert file_name(other.key()) != file_name(PROBLEM.key())


@pytest.mark.parametrize("band", [Band(64, 0), Band(0, 64), Band(-1, 64), Band(64, -1), Band(16, 16)])
def test_both_sides_of_the_band_are_in_the_key(band: Band) -> None:
    keys = {replace(PROBLEM, band=other).key() for other in (Band(), Band(-1, 0), Band(32, 32), band)}
    assert len(keys) == 4


@pytest.mark.parametrize("name", OTHER_DEVICE)
def test_every_trait_of_a_device_has_a_directory_of_its_own(cache: TuningCache, name: str) -> None:
    other = replace(H200, **{name: OTHER_DEVICE[name]})
    assert cache.directory(other).parent != cache.directory(H200).parent


@pytest.mark.parametrize("name", ["schema", "policy", "torch"])
def test_every_version_has_a_directory_of_its_own(name: str) -> None:
    versions = environment.versions()
    assert environment.name_of({**versions, name: "other"}) != environment.name_of(versions)
    assert name in versions


@pytest.mark.parametrize("package", environment.PACKAGES)
def test_an_installed_compiler_is_in_the_directory_name(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == package:
            return "99.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.importlib.metadata, "version", version)
    found = environment.versions.__wrapped__()
    assert found[package] == "99.1"
    assert f"{package}-99.1" in environment.name_of(found)
    assert set(found) == {"schema", "policy", "torch", package}


def test_an_entry_reads_back_as_it_was_stored(cache: TuningCache) -> None:
    entry = make_entry(H200)
    stored = cache.store(H200, entry)
    assert stored.path is not None
    assert stored.path.is_file()
    assert cache.load(H200, PROBLEM) == entry
    assert cache.entries() == [entry]
    assert [found.path for found in cache.entries(H200)] == [stored.path]
    assert cache.entries(known("t4")) == []
    assert cache.load(H200, replace(PROBLEM, head_dim=128)) is None
    manifest = json.loads((cache.directory(H200) / "manifest.json").read_text())
    assert manifest["device"]["name"] == H200.name
    assert manifest["environment"] == environment.versions()


def test_problems_of_one_bucket_share_an_entry(cache: TuningCache) -> None:
    cache.store(H200, make_entry(H200, replace(PROBLEM, seqlen_q=100, seqlen_k=100)))
    assert cache.load(H200, PROBLEM) is not None


# ------------------------------------------------------------------------------------------------ damaged files


def damaged(text: str) -> dict[str, str]:
    data = json.loads(text)
    return {
        "truncated": text[: len(text) // 2],
        "empty": "",
        "binary": "\udcff\udcfe",
        "nested": "[" * 200_000,
        "no object": "[1, 2]",
        "other object": '{"name": "something else"}',
        "newer": json.dumps({**data, "schema": environment.SCHEMA + 1, "kernel": ["new", "form"]}),
        "another problem": make_entry(H200, replace(PROBLEM, head_dim=128)).to_json(),
        "another device": json.dumps({**data, "device": "elsewhere"}),
        "other software": json.dumps({**data, "environment": {"torch": "0.1"}}),
        "a field missing": json.dumps({name: value for name, value in data.items() if name != "source_hash"}),
        "a field of another type": json.dumps({**data, "kernel": 3}),
        "an impossible config": json.dumps({**data, "config": {"block": [1]}}),
        "an impossible time": json.dumps({**data, "p50": -1.0}),
        "a time that is none": json.dumps({**data, "p50": "fast"}),
        "an unknown field of the problem": json.dumps({**data, "problem": {**data["problem"], "colour": 1}}),
        "a key of another problem": json.dumps({**data, "problem": {**data["problem"], "head_dim": 128}}),
    }


DAMAGES = list(damaged(make_entry(H200).to_json()))
REPLACEABLE = {"truncated", "empty", "binary", "nested"}  # not whole, so nothing is lost


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss_and_stays(cache: TuningCache, kernel: FakeKernel, damage: str) -> None:
    path = cache.store(H200, make_entry(H200)).path
    assert path is not None
    content = damaged(path.read_text())[damage].encode(errors="surrogateescape")
    path.write_bytes(content)
    with pytest.warns(FaopsWarning, match=path.name):
        assert lookup(PROBLEM, H200, [kernel]) is None
    assert cache.load(H200, PROBLEM) is None  # no second warning: it would be an error here
    assert cache.entries() == []
    assert path.read_bytes() == content
    if damage in REPLACEABLE:
        cache.store(H200, make_entry(H200))
        assert cache.load(H200, PROBLEM) == make_entry(H200)
    else:
        with pytest.raises(CacheError, match="is left alone"):
            cache.store(H200, make_entry(H200))
        assert path.read_bytes() == content


def test_a_directory_in_place_of_an_entry_is_a_miss(cache: TuningCache, kernel: FakeKernel) -> None:
    cache.path(H200, PROBLEM).mkdir(parents=True)
    with pytest.warns(FaopsWarning, match="directory"):
        assert lookup(PROBLEM, H200, [kernel]) is None
    with pytest.raises(CacheError, match="is left alone: it is a directory"):
        cache.store(H200, make_entry(H200))


def test_other_files_are_not_looked_at(cache: TuningCache, kernel: FakeKernel) -> None:
    path = cache.store(H200, make_entry(H200)).path
    assert path is not None
    (path.parent / f".half{files.TEMPORARY_SUFFIX}").write_text('{"schema"')
    (path.parent / "README").write_text("hello")
    assert lookup(PROBLEM, H200, [kernel]) is not None
    assert len(cache.entries()) == 1


# ---------------------------------------------------------------------------------------------- directories that refuse


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_says_why_and_leaves_nothing(
    cache: TuningCache, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    entry = make_entry(H200)
    path = cache.store(H200, entry).path
    assert path is not None
    before = path.read_text()

    def refuse(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, function, refuse)
    with pytest.raises(CacheError, match=os.strerror(number)) as raised:
        cache.store(H200, replace(entry, speedup=3.0))
    assert "FAOPS_CACHE_DIR" in str(raised.value)
    assert str(cache.directory(H200)) in str(raised.value)
    assert path.read_text() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def refusing_roots(tmp_path: Path) -> list[Path]:
    file = tmp_path / "file"
    file.write_text("a file where a directory should be")
    return [file, file / "below", Path("/proc/no/such/place"), Path("/sys/kernel/faops")]


@pytest.mark.parametrize("which", range(4))
def test_a_root_that_cannot_be_written_works_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: FakeKernel, which: int
) -> None:
    root = refusing_roots(tmp_path)[which]
    monkeypatch.setenv("FAOPS_CACHE_DIR", str(root))
    cache = TuningCache()
    assert cache.root == root
    assert lookup(PROBLEM, H200, [kernel]) is None
    assert cache.load(H200, PROBLEM) is None
    assert cache.entries() == []
    assert cache.clear() == 0
    assert stamp() == stamp()
    with pytest.raises(CacheError, match="cannot be written"):
        cache.store(H200, make_entry(H200))


def test_an_unreadable_directory_is_a_miss(
    cache: TuningCache, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(H200, make_entry(H200))

    def refuse(path: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(cache_module.os, "listdir", refuse)
    with pytest.warns(FaopsWarning, match="Permission denied"):
        assert lookup(PROBLEM, H200, [kernel]) is None


def test_settings_that_make_no_sense_raise_nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "faops.yaml"
    broken.write_text("backend: [unclosed")
    monkeypatch.setenv("FAOPS_CONFIG", str(broken))
    monkeypatch.delenv("FAOPS_CACHE_DIR")
    with pytest.raises(Exception, match="cannot be read"):
        settings.cache_root()
    assert stamp() is None
    assert lookup(PROBLEM, H200, [FakeKernel()]) is None


# ------------------------------------------------------------------------------------------------ clearing


def test_clear_by_device_and_by_key(cache: TuningCache) -> None:
    other = replace(PROBLEM, head_dim=128)
    t4 = known("t4")
    for device in (H200, t4):
        for problem in (PROBLEM, other):
            cache.store(device, make_entry(device, problem))
    assert cache.clear(key=other.key()) == 2
    assert {entry.key for entry in cache.entries()} == {PROBLEM.key()}
    assert cache.clear(t4) == 1
    assert [entry.device for entry in cache.entries()] == [H200.identity]
    assert cache.clear(H200.identity) == 1
    assert cache.clear() == 0


def test_clear_removes_what_cannot_be_read(cache: TuningCache) -> None:
    path = cache.store(H200, make_entry(H200)).path
    assert path is not None
    path.write_text("{")
    leftover = path.with_name(f".x{files.TEMPORARY_SUFFIX}")
    leftover.write_text("{")
    assert cache.clear() == 1
    assert not path.exists()
    assert not leftover.exists()


def test_json_form_names_everything(cache: TuningCache) -> None:
    data = json.loads(make_entry(H200).to_json())
    assert data["config"] == {"block": 3}
    assert data["timings"][0]["n"] == 10
    assert AttentionProblem.from_dict(data["problem"]) == PROBLEM
    assert set(data) == {item.name for item in fields(Entry)} - {"path"}


def test_config_values_keep_their_types(cache: TuningCache) -> None:
    config = Config(block=3, fused=True, order="row")
    cache.store(H200, make_entry(H200, config=config))
    loaded = cache.load(H200, PROBLEM)
    assert loaded is not None
    assert loaded.config == config
    assert loaded.config["fused"] is True
