"""The runner of flash-attn's own tests, by a made-up suite of a few lines: none of flash-attn's is needed."""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.adapters.flash_attn.suite import cpu, left_out, plugin, sample
from tests.adapters.flash_attn.suite.__main__ import main, table

SUITE = """
    import helper
    import pytest
    import torch
    from flash_attn import flash_attn_func
    import flash_attn_interface

    assert torch.cuda.get_device_capability("cuda") == (8, 0)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("seqlen_q,seqlen_k", [(3, 5), (5, 4), (2000, 2000)])
    def test_attention(seqlen_q, seqlen_k, causal):
        assert seqlen_q < 2000
        q = torch.randn(1, seqlen_q, 2, 8, device="cuda")
        k = torch.randn(1, seqlen_k, 2, 8).cuda()
        assert flash_attn_func(q, k, k, causal=causal).device.type == "cpu"
        assert flash_attn_interface.flash_attn_func(q, k, k).shape == q.shape

    def test_rounds():
        assert [len(range(n)) for n in (49, 50, 250)] == [49, 2, 2]
        assert helper.__file__.endswith("helper.py")

    def test_failing():
        assert torch.ones(1, device="cuda:0").sum() == 2

    @pytest.mark.parametrize("n", range(4))
    def test_skipping(n):
        pytest.skip("for a reason")

    def test_compilation_count():
        assert False
"""


def test_run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_rotary.py").write_text(textwrap.dedent(SUITE))
    (tmp_path / "tests" / "helper.py").write_text("")
    monkeypatch.setenv("FAOPS_EMULATE", "")
    assert main([str(tmp_path), "--sample", "12", "--seed", "7"]) == 1
    printed = capfd.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["test_attention", "6", "4", "4", "4", "0", "0"] in lines
    assert ["test_rounds", "1", "1", "1", "1", "0", "0"] in lines
    assert ["test_failing", "1", "1", "1", "0", "1", "0"] in lines
    assert ["test_skipping", "4", "4", "4", "0", "0", "4"] in lines
    assert ["all", "12", "10", "10", "5", "1", "4"] in lines
    assert "4 skipped: for a reason" in printed
    assert "seed 7" in printed
    assert "left out of tests/test_rotary.py: test_compilation_count, which counts how often" in printed
    assert not list(tmp_path.rglob("*.pyc")), "nothing is written into the checkout"


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "none of tests/test_flash_attn.py" in capsys.readouterr().out


def test_file_that_cannot_be_run() -> None:
    assert "could not be run" in table({"tests/test_flash_attn.py": None})


# --- the CPU for CUDA -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cuda", True), ("cuda:3", True), (torch.device("cuda", 1), True), ("cpu", False), ("meta", False), (None, False),
     (torch.float16, False), (0, False)],
)  # fmt: skip
def test_is_cuda(device: Any, expected: bool) -> None:
    assert cpu.is_cuda(device) is expected


def test_functions_get_the_cpu() -> None:
    with cpu.CudaIsCpu():
        made = [
            torch.randn(2, device="cuda"), torch.tensor([1], device=torch.device("cuda")), torch.ones(1).cuda(),
            torch.ones(1).to("cuda"), torch.ones(1).to(device="cuda:0", dtype=torch.float16),
            torch.arange(3, device="cuda", dtype=torch.int32), torch.ones(1).to("cuda", torch.float64),
        ]  # fmt: skip
        assert torch.ones(1, device="meta").device.type == "meta"
    assert {tensor.device.type for tensor in made} == {"cpu"}
    assert made[4].dtype == torch.float16 and made[6].dtype == torch.float64


# --- the sample -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [1, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize(("a", "b"), [(1, 2), (3, 4), (5, 6)])
def parametrised(a: int, b: int, dtype: int) -> None: ...


def test_combinations() -> None:
    found = list(sample.combinations(parametrised))
    assert len(found) == 6
    assert {(one["a"], one["b"]) for one in found} == {(1, 2), (3, 4), (5, 6)}
    assert {one["dtype"] for one in found} == {1, 2}
    assert list(sample.combinations(test_combinations)) == [{}]


def test_apply_leaves_one_mark() -> None:
    function = SimpleNamespace(pytestmark=[pytest.mark.full.mark, *parametrised.pytestmark])  # type: ignore[attr-defined]
    drawn = [{"a": 1, "b": 2, "dtype": 2}, {"a": 5, "b": 6, "dtype": 1}]
    sample.apply(function, sample.Share(6, 6, drawn))  # type: ignore[arg-type]
    assert [mark.name for mark in function.pytestmark] == ["full", "parametrize"]
    assert list(sample.combinations(function)) == drawn  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 0), ({"seqlen": 30}, 900), ({"seqlen_q": 3, "seqlen_k": 50, "seqlen": 9}, 150),
        ({"seqlen": 10, "num_splits": 4, "d": 32}, 80),
    ],
)  # fmt: skip
def test_scores(parameters: dict[str, int], expected: int) -> None:
    assert sample.scores(parameters) == expected


def test_spread_is_even() -> None:
    assert sample.spread(10, {"a": 100, "b": 1, "c": 100}) == {"a": 4, "b": 1, "c": 5}
    assert sample.spread(1000, {"a": 7, "b": 3}) == {"a": 7, "b": 3}
    assert sample.spread(0, {"a": 7}) == {"a": 0}


def test_draw_repeats_with_its_seed() -> None:
    tests = {"test_a": parametrised, "helper": parametrised, "test_b": 3}
    shares = [sample.draw(tests, 3, seed, lambda name, given: given["a"] != 3) for seed in (1, 1, 2, 3, 4)]
    assert [list(share) for share in shares] == [["test_a"]] * 5
    assert (shares[0]["test_a"].total, shares[0]["test_a"].small) == (6, 4)
    draws = [share["test_a"].drawn for share in shares]
    assert draws[0] == draws[1]
    assert any(draw != draws[0] for draw in draws[2:])
    assert all(len(draw) == 3 and all(given["a"] != 3 for given in draw) for draw in draws)


OUTPUT = {"softcap": 0.0, "has_qv": False, "local": False, "d": 64}


def test_rounds() -> None:
    assert plugin.fewer_rounds(49) == range(49)
    assert plugin.fewer_rounds(1000) == range(2)
    assert plugin.fewer_rounds(10, 100, 1) == range(10, 12)


@pytest.mark.parametrize(
    ("file", "test", "parameters", "expected"),
    [
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 1}, False),
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 1, "softcap": 2.0}, True),
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 1, "has_qv": True}, True),
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 3}, True),
        ("hopper", "test_flash_attn_varlen_output", {**OUTPUT, "seqlen_k": 3, "local": True}, False),
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 128, "local": True}, True),
        ("hopper", "test_flash_attn_output", {**OUTPUT, "seqlen_k": 128, "has_qv": True, "d": 96}, False),
        ("hopper", "test_flash_attn_combine", {}, True),
        ("tests", "test_flash_attn_output", {"softcap": 50.0, "dropout_p": 0.17}, False),
        ("tests", "test_flash_attn_splitkv", {"seqlen_q": 1, "swap_sq_sk": True}, False),
        ("tests", "test_flash_attn_splitkv", {"seqlen_q": 1, "swap_sq_sk": False}, True),
    ],
)
def test_left_out(file: str, test: str, parameters: dict[str, Any], expected: bool) -> None:
    assert left_out.drawn(f"{file}/test_flash_attn.py", test, parameters) is expected
