"""Result files: names, contents, whole writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import record
from faops.device import detect, known


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "cpu-xeon-avx512-2c"),
        ("Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "cpu-xeon-platinum-8480-avx512-2c"),
        ("AMD EPYC 7763 64-Core Processor", "cpu-epyc-7763-avx512-2c"),
    ],
)
def test_folder_of_a_cpu(name: str, expected: str) -> None:
    assert record.device_folder(replace(detect("cpu"), name=name, arch="x86_64-avx512", units=2)) == expected


def test_folder_of_a_gpu() -> None:
    assert record.device_folder(known("h200")) == "h200"
    assert record.device_folder(known("t4")) == "tesla-t4"


def test_header_tells_where_figures_come_from() -> None:
    found = record.header("x", repeats=3)
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]["name"] == detect("cpu").name
    assert found["settings"] == {"repeats": 3}
    assert found["command"].startswith("python ")
    json.dumps(found)


def test_written_whole_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    result = {**record.header("some"), "cases": [{"samples": [1.0, 2.5e-6], "text": "a [b, c] d", "none": None}]}
    path = record.write(result)
    assert path == tmp_path / record.device_folder(detect("cpu")) / "some.json"
    assert [entry.name for entry in path.parent.iterdir()] == ["some.json"]
    assert record.read(path) == result
    assert '"samples": [1.0, 2.5e-06]' in path.read_text()
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema is 99"):
        record.read(path)


def test_no_result_with_a_number_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(ValueError):
        record.write({**record.header("some"), "cases": [float("nan")]})
    assert not list(tmp_path.rglob("*.json"))
