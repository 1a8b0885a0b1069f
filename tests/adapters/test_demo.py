"""The parts of examples/generate.py that decide what it claims: sameness of texts, and peak memory."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*tokens: list[int]) -> dict[str, Any]:
    return {"answers": [{"tokens": each, "text": f"text {each}"} for each in tokens]}


def test_equal_tokens_are_called_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    demo = load(EXAMPLES / "generate.py")
    answers = [[1, 2, 3], [4, 5], [6]]
    assert demo.show_texts({"sdpa": report(*answers), "faops": report(*answers)})
    assert "DIFFERENT" not in capsys.readouterr().out


@pytest.mark.parametrize("third", [[6, 8], [7], []], ids=["longer", "changed", "empty"])
def test_one_different_token_is_said_loudly(third: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    demo = load(EXAMPLES / "generate.py")
    reports = {"sdpa": report([1, 2, 3], [4, 5], [6]), "faops": report([1, 2, 3], [4, 5], third)}
    assert not demo.show_texts(reports)
    out = capsys.readouterr().out
    assert out.count("*** DIFFERENT ***") == 1
    assert "wrote DIFFERENT texts" in out


@pytest.mark.parametrize("sampled", [False, True])
def test_peak_memory_counts_what_was_freed_again(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = load(EXAMPLES / "demo" / "memory.py")
    if sampled:
        pytest.importorskip("psutil")
        monkeypatch.setattr(memory.PeakMemory, "RESET", Path("/no/such/file"))
        monkeypatch.setattr(memory, "SAMPLE_SECONDS", 0.0005)
    with memory.PeakMemory() as measured:
        block = bytearray(b"x") * 200_000_000
        time.sleep(0.2)  # a sampler needs its turn
        del block
    assert 150 < measured.peak - measured.before < 400
    assert measured.method.startswith("sampled") == (sampled or not Path("/proc/self/clear_refs").exists())


@pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--text", "/no/such/file"]])
def test_wrong_arguments_are_named(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "generate.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert " ".join(arguments) in done.stderr
    assert "Traceback" not in done.stderr
