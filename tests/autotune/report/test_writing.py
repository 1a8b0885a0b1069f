"""Reports as files: whole or not at all, and refused before any work where they cannot be written."""

from __future__ import annotations

import importlib.util
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from faops import registry
from faops.autotune import report
from faops.autotune.report import check_path, legal_configs, write
from faops.device import detect, known
from faops.errors import ArgumentError, TuningError
from faops.registry import Config
from tests.autotune.support import make_entry

from .support import T4, parsed, tiles


def test_page_is_written(tmp_path: Path) -> None:
    write([tiles()], tmp_path / "report.html", notes=[("problem", "failed")])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(parsed(text).all("section")) == 1
    assert os.listdir(tmp_path) == ["report.html"]


def test_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = make_entry(T4, config=Config(block=0), p50=1.0, speedup=1.0, timings=())
    write([tiles(), kept], tmp_path / "report.PNG")
    data = (tmp_path / "report.PNG").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (1600, 720)
    assert data[-8:-4] == b"IEND"
    assert os.listdir(tmp_path) == ["report.PNG"]


def test_picture_leaves_the_choice_of_the_program_alone(tmp_path: Path) -> None:
    """matplotlib's backend is a global of the process; a report must not change it."""
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    write([tiles()], tmp_path / "report.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("name", "word"),
    [("report.pdf", ".html or .png"), ("report", ".html or .png"), ("missing/report.html", "can be written")],
)
def test_paths_that_cannot_be_a_report(tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises(ArgumentError, match=word) as raised:
        check_path(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_writing_refuses_them_too(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"\.html or \.png"):
        write([tiles()], tmp_path / "report.txt")
    assert os.listdir(tmp_path) == []


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(ArgumentError, match="a directory"):
        check_path(tmp_path / "report.html")


def test_check_leaves_nothing_and_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    check_path(tmp_path / "report.html")
    assert os.listdir(tmp_path) == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_unwritable_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ArgumentError, match="Permission denied"):
        check_path(tmp_path / "report.html")


def test_picture_without_matplotlib_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TuningError, match=r"pip install 'faops\[plot\]'"):
        check_path(tmp_path / "report.png")
    check_path(tmp_path / "report.html")


@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / name).write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TuningError, match="No space left on device"):
        write([tiles()], tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"


def test_too_many_problems_for_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(TuningError, match=r"61 problems.*\.html"):
        write([tiles()] * (report.MOST_IN_A_PICTURE + 1), tmp_path / "report.png")
    assert os.listdir(tmp_path) == []


def test_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(TuningError, match="nothing to draw"):
        write([], tmp_path / "report.png", notes=[("problem", "failed")])
    assert os.listdir(tmp_path) == []


def test_legal_configs_come_from_the_entrys_device_alone() -> None:
    cpu = detect("cpu")
    timing = replace(tiles().timings[0], kernel="torch.blockwise_forward")
    entry = make_entry(cpu, timings=(timing, replace(timing, kernel="gone.forward")))
    assert legal_configs(entry, ()) == {}
    assert legal_configs(entry, [known("a100")]) == {}
    (name, configs), *more = legal_configs(entry, [known("a100"), cpu]).items()
    assert (name, more) == ("torch.blockwise_forward", [])
    assert configs == registry.get(name).configs(entry.attention_problem(), cpu)  # type: ignore[union-attr]
