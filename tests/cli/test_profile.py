"""`faops profile`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Faops
from tests.cli.support import document, python, refused
from tests.profile.support import SAMPLES

TINY = "sq=33,h=2,d=16,dtype=float32"
FUSED = "from torch.nn.functional import scaled_dot_product_attention as attention\n"
EAGER = "def attention(q, k, v): return torch.softmax(q @ k.mT, -1) @ v\n"
CALLS = "import torch, sys\n{}print('from the script', sys.argv[1:])\nattention(*(torch.randn(1, 2, 33, 16),) * 3)\n"


def script(folder: Path, attention: str) -> str:
    path = folder / "script.py"
    path.write_text(CALLS.format(attention))
    return str(path)


# --- problems ---------------------------------------------------------------------------------------------------------


def test_a_fused_problem(faops: Faops) -> None:
    result = faops("profile", "--shape", f"{TINY},causal=1", "--device", "cpu", "--steps", "2")
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "forward float32 b1 33x33 h2/2 d16 causal" in lines["profiled"]
    assert lines["attention"].endswith("fused")
    assert "none" in lines["transposes"] and "none" in lines["masks"]
    assert "counted from recorded shapes" in lines["bytes"]
    row = lines["aten::_scaled_dot_product_flash_attention_for_cpu"]
    assert "called by torch.sdpa_forward" in row and row.split()[-3] == "2"


def test_a_tiled_problem_passes_unless_strict(faops: Faops) -> None:
    asked = ("profile", "--shape", f"{TINY},softcap=1", "--steps", "1", "--warmup", "0")
    result = faops(*asked)
    assert result.exit_code == 0
    assert "not one kernel, but tiled" in result.stdout and "modelled from the problem" in result.stdout
    assert faops(*asked, "--strict").exit_code == 1


def test_several_problems_as_json(faops: Faops) -> None:
    shapes = ("--shape", TINY, "--shape", f"{TINY},op=backward")
    found = document(faops("profile", *shapes, "--backend", "torch.blockwise", "--steps", "1", "--json"))
    assert found["command"] == "profile" and found["passed"] is True
    assert [result["verdict"] for result in found["results"]] == ["tiled", "tiled"]
    assert [result["attention"][0]["name"] for result in found["results"]] == [
        "torch.blockwise_forward",
        "torch.blockwise_backward",
    ]


def test_problems_of_a_model(faops: Faops) -> None:
    options = ("--prompt", "17", "--context", "33", "--steps", "1", "--warmup", "0")
    found = document(faops("profile", "--model", "smollm2-135m", "--dtype", "float32", *options, "--json"))
    assert len(found["results"]) >= 2 and found["passed"]


def test_the_recording_is_kept(faops: Faops, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    assert faops("profile", "--shape", TINY, "--output", str(folder), "--steps", "1").exit_code == 0
    again = faops("profile", "--trace", str(folder / "trace.json"))
    assert again.exit_code == 0 and "called by torch.sdpa_forward" in again.stdout


# --- scripts ----------------------------------------------------------------------------------------------------------


def test_a_script_that_is_fused(faops: Faops, tmp_path: Path) -> None:
    result = faops("profile", script(tmp_path, FUSED), "--model", "its own option")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("from the script ['--model', 'its own option']\n")
    assert "attention   fused" in result.stdout


def test_a_script_that_is_not_fused(faops: Faops, tmp_path: Path) -> None:
    result = faops("profile", script(tmp_path, EAGER))
    assert result.exit_code == 1 and result.stderr == ""
    assert "NOT FUSED" in result.stdout
    assert "1 x aten::bmm – aten::_softmax – aten::bmm, scores 1x2x33x33" in result.stdout
    assert "fused it would be" in result.stdout


def test_a_script_without_attention(faops: Faops, tmp_path: Path) -> None:
    result = faops("profile", script(tmp_path, "def attention(q, k, v): return q + k\n"))
    assert result.exit_code == 1 and "none was seen" in result.stdout


def test_json_is_not_mixed_with_what_a_script_prints(faops: Faops, tmp_path: Path) -> None:
    result = faops("profile", "--json", script(tmp_path, EAGER))
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["passed"] is False and found["results"][0]["not_fused"][0]["scores"] == [1, 2, 33, 33]
    assert "from the script" in result.stderr


def test_a_script_that_fails(faops: Faops, tmp_path: Path) -> None:
    result = faops("profile", script(tmp_path, "def attention(*x): raise ValueError('broken')\n"))
    assert result.exit_code == 1 and result.stdout == "from the script []\n"
    assert result.stderr.startswith("error: ") and result.stderr.endswith("script.py:2: ValueError: broken\n")
    refused(faops("profile", "no/such/script.py"), "no/such/script.py", "no such script")


def test_a_real_run_without_noise(tmp_path: Path) -> None:
    done = python("-m", "faops_cli", "profile", script(tmp_path, EAGER), "--epochs", "2")
    assert done.returncode == 1, done.stderr
    assert "['--epochs', '2']" in done.stdout and "NOT FUSED" in done.stdout
    assert done.stderr == ""


# --- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strict", "code", "words"),
    [
        ("fused_training.csv", True, 0, "FlashAttentionScoreGrad"),
        ("unfused.csv", False, 1, "2 x BatchMatMulV2 – SoftmaxV2 – BatchMatMulV2, scores 1x8x512x512"),
        ("fused_transposes.csv", False, 0, "8 by copying, 319 us"),
        ("fused_transposes.csv", True, 1, "8 by copying, 319 us"),
        ("mask_every_call.csv", True, 1, "2048x2048: made 4 x for 4 calls, anew for every call (Fill, Triu)"),
        ("prompt_and_incre.csv", True, 0, "IncreFlashAttention"),
        ("level0_fused.csv", False, 0, "no shapes were recorded"),
        ("level0_unfused.csv", False, 1, "by the order of kernels alone"),
        ("header_only.csv", False, 1, "none was seen"),
    ],
)
def test_recordings_of_an_npu(name: str, strict: bool, code: int, words: str, faops: Faops) -> None:
    result = faops("profile", "--kernel-details", str(SAMPLES / name), *(["--strict"] if strict else []))
    assert result.exit_code == code, result.output
    assert words in result.stdout


@pytest.mark.parametrize("name", ["empty.csv", "cut_off.csv", "other_file.csv", "missing.csv"])
def test_broken_recordings(name: str, faops: Faops) -> None:
    refused(faops("profile", "--kernel-details", str(SAMPLES / name)), name)


def test_the_wrong_kind_of_file(faops: Faops, tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("{")
    refused(faops("profile", "--kernel-details", str(tmp_path / "trace.json")), ".csv file is expected")
    refused(faops("profile", "--trace", str(SAMPLES / "unfused.csv")), "--kernel-details")
    refused(faops("profile", "--trace", str(tmp_path)), "chrome trace is expected")
    refused(faops("profile", "--trace", str(tmp_path / "trace.json")), "not a complete JSON file")
    refused(faops("profile", "--kernel-details", str(tmp_path)), "no kernel_details.csv")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("none was given", "--shape", "SCRIPT")),
        (("--shape", TINY, "script.py"), ("not --shape and SCRIPT",)),
        (("--trace", "a.json", "--kernel-details", "b.csv"), ("not --trace and --kernel-details",)),
        (("--shape", TINY, "--dtype", "float32"), ("--dtype goes with --model",)),
        (("--steps", "3", "script.py"), ("--steps does not go with SCRIPT",)),
        (("--backend", "torch", "--trace", "a.json"), ("--backend does not go with --trace",)),
        (("--device", "cpu", "--trace", "a.json"), ("--device does not go with --trace",)),
        (("--output", "x", "--trace", "a.json"), ("--output does not go with --trace",)),
        (("--nonsense", "script.py"), ("--nonsense",)),
    ],
)
def test_usage(arguments: tuple[str, ...], words: tuple[str, ...], faops: Faops) -> None:
    refused(faops("profile", *arguments), *words, code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "sq=0,h=1,d=8"), ("sq=0",)),
        (("--shape", TINY, "--device", "h900"), ("device", "'h900'")),
        (("--shape", TINY, "--backend", "nothing"), ("backend", "'nothing'")),
        (("--model", "no-such-model"), ("no-such-model",)),
        (("--plan", "no/such.yaml"), ("no/such.yaml",)),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], words: tuple[str, ...], faops: Faops) -> None:
    refused(faops("profile", *arguments), *words)


def test_the_docs_print_what_is_printed(faops: Faops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "profile.md").read_text(encoding="utf-8")
    asked = "profile --kernel-details kernel_details.csv"
    printed = page.split(f"$ faops {asked}\n")[1].split("\n```")[0]
    (tmp_path / "kernel_details.csv").write_text((SAMPLES / "fused_transposes.csv").read_text())
    monkeypatch.chdir(tmp_path)
    assert faops(*asked.split()).stdout.rstrip() == printed
