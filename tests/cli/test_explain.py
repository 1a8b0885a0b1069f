"""`faops explain`."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Faops
from tests.cli.support import TINY, document, refused


def test_names_the_plan_and_every_verdict(faops: Faops) -> None:
    result = faops("explain", "--shape", "sq=64,h=4,d=32,window=8:0,alibi=1,sinks=1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("problem  forward float16 b1 64x64 h4/4 d32 window(8,0) alibi sinks")
    assert any(line.startswith("plan     torch.blockwise_forward [") for line in lines)
    assert any(line.startswith("because  not tuned") for line in lines)
    sdpa = next(index for index, line in enumerate(lines) if line.startswith("torch.sdpa_forward "))
    assert "window" in lines[sdpa]
    assert "ALiBi" in lines[sdpa + 1]


def test_tuning_changes_the_reason_and_shows_timings(faops: Faops) -> None:
    before = document(faops("explain", "--shape", TINY, "--json"))
    assert before["plan"]["source"] == "default"
    assert before["tuned"] is None
    tuned = document(faops("tune", "--shape", TINY, "--json"))["problems"][0]
    after = document(faops("explain", "--shape", TINY, "--json"))
    assert after["plan"]["source"] == "tuned"
    assert after["plan"]["kernel"] == tuned["winner"]["kernel"]
    assert after["tuned"]["timings"]
    text = faops("explain", "--shape", TINY).stdout
    assert "because  tuned here on" in text
    assert "measured on" in text
    assert "p50" in text


@pytest.mark.parametrize(
    ("device", "family", "kernel"),
    [
        ("cpu", "cpu", "torch.sdpa_forward"),
        ("t4", "turing", "cuda_raw.sm75_forward"),
        ("H200", "hopper", "torch.sdpa_forward"),
        ("910b", "ascend", "npu.fusion_forward"),
    ],
)
def test_device_need_not_be_here(faops: Faops, device: str, family: str, kernel: str) -> None:
    found = document(faops("explain", "--shape", "sq=64,h=4,d=64", "--device", device, "--json"))
    assert found["device"]["family"] == family
    assert found["plan"]["kernel"] == kernel


def test_forced_backend(faops: Faops) -> None:
    found = document(faops("explain", "--shape", TINY, "--backend", "torch.blockwise", "--json"))
    assert found["plan"]["kernel"] == "torch.blockwise_forward"
    assert found["plan"]["forced"] is True


def test_forced_backend_that_cannot_run_has_no_plan(faops: Faops) -> None:
    shape = "sq=16,h=2,d=16,window=4:0,softcap=1"
    found = document(faops("explain", "--shape", shape, "--backend", "torch.sdpa", "--json"))
    assert found["plan"] is None
    assert "torch.sdpa_forward" in found["error"]
    assert "no plan" in faops("explain", "--shape", shape, "--backend", "torch.sdpa").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "sq=0,h=1,d=8"), ("sq=0", "at least 1")),
        (("--shape", "lanes=3"), ("unknown name 'lanes'",)),
        (("--shape", TINY, "--device", "h900"), ("device", "'h900'", "t4", "h200")),
        (("--shape", TINY, "--backend", "cudnn"), ("backend", "'cudnn'", "torch")),
    ],
)
def test_bad_input_is_refused(faops: Faops, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(faops("explain", *arguments), *words)


def test_shape_is_needed(faops: Faops) -> None:
    refused(faops("explain"), "--shape", code=2)
