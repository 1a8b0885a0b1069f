"""The file of an export: what cannot be read is refused, and nothing else than such a file is ever overwritten."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faops.autotune.cache import exchange
from faops.autotune.cache.exchange import offers_of_file
from faops.device import known
from faops.errors import CacheError

from ..support import make_entry

GOOD = make_entry(known("h200")).as_dict()


def document(*entries: Any) -> str:
    return json.dumps({"kind": exchange.KIND, "schema": 1, "devices": {}, "entries": list(entries)})


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CacheError, match="No such file"):
        offers_of_file(tmp_path / "missing")
    with pytest.raises(CacheError, match="directory"):
        offers_of_file(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CacheError, match="not a regular file"):
        offers_of_file(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(CacheError, match="UTF-8"):
        offers_of_file(tmp_path / "latin")
    monkeypatch.setattr(exchange, "LARGEST", 1 << 20)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)  # a terabyte of holes
    with pytest.raises(CacheError, match="larger than 1 MiB"):
        offers_of_file(tmp_path / "huge")
    with pytest.raises(CacheError, match="larger than 1 MiB"):
        exchange.text_of(io.BytesIO(bytes(2 << 20)), "standard input")
    with pytest.raises(CacheError, match="UTF-8"):
        exchange.text_of(io.BytesIO(b"\xff"), "standard input")
    assert exchange.text_of(io.BytesIO(b"{}"), "standard input") == "{}"


def in_the_way(path: Path) -> dict[str, Callable[[], object]]:
    return {
        "file": lambda: path.write_text("my thesis"),
        "other JSON": lambda: path.write_text("{}"),
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: (
            path.with_name("elsewhere").write_text(document()),
            path.symlink_to(path.with_name("elsewhere")),
        ),
        "dangling link": lambda: path.symlink_to("nowhere"),
    }


@pytest.mark.parametrize("thing", in_the_way(Path()))
def test_an_export_overwrites_exports_only(tmp_path: Path, thing: str) -> None:
    path = tmp_path / "out.json"
    in_the_way(path)[thing]()
    before = os.lstat(path)
    with pytest.raises(CacheError, match="is no exported file"):
        exchange.write(path, document())
    assert os.lstat(path)[:8] == before[:8]


def test_an_export_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    exchange.write(path, document())
    exchange.write(path, document(GOOD))
    assert path.read_text() == document(GOOD)
    with pytest.raises(CacheError, match="cannot be written"):
        exchange.write(tmp_path / "no" / "such" / "place.json", document())
