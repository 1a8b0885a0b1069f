"""The decoding benchmark: its contenders compute the same, and one tiny run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import decode_cpu, record
from benchmarks.decode_cpu import KINDS, Case, calls


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_contenders_compute_the_same(kind: str, dtype: str) -> None:
    contenders = calls(Case(kind, "smollm2", 3, 64, dtype))
    contenders.pop("read", None)
    ours = contenders.pop("faops")()
    assert contenders
    for theirs in contenders.values():
        torch.testing.assert_close(ours.float(), theirs().float(), rtol=2e-2, atol=2e-2)


def test_bytes_and_selection() -> None:
    assert Case("dense", "llama8b", 2, 128, "bfloat16").bytes == 2 * 2 * 128 * 8 * 128 * 2
    options = decode_cpu._parse(["--kinds", "dense", "--models", "llama8b", "--dtypes", "float32"])
    assert not options.complete
    assert {case.batch * case.keys for case in decode_cpu.select(options)} == {128, 512, 1024, 2048, 4096, 16384}
    assert decode_cpu._parse([]).complete
    assert not decode_cpu._parse(["--quick"]).complete


@pytest.mark.full
def test_one_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "QUICK_RESULTS", tmp_path)
    monkeypatch.setattr(decode_cpu, "SAMPLE_SECONDS", 0.0)
    arguments = ["--quick", "--models", "smollm2", "--dtypes", "float32", "--seconds", "0"]
    assert decode_cpu.main(arguments) == 0
    (path,) = tmp_path.glob("*/decode_cpu.json")
    result = json.loads(path.read_text())
    assert len(result["cases"]) == 3 * 2 * 2
    assert all(found["agrees"] for found in result["cases"])
    for kind, peers in (
        ("dense", ["sdpa", "sdpa_rows", "read"]),
        ("ragged", ["sdpa_each"]),
        ("paged", ["gather_each"]),
    ):
        heading, rows = decode_cpu.table(result, kind)
        assert heading[5:] == peers
        assert rows[0][:4] == ["smollm2", "float32", "1", "128"]
        assert all(len(row) == len(heading) for row in rows)
    verdicts = {name for found in result["cases"] for name, ratio in found["ratios"].items() if "verdict" in ratio}
    assert verdicts == {"sdpa", "gather_each"}
    assert "paged smollm2 float32 batch 4 keys 1024" in capsys.readouterr().out
