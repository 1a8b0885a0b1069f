"""The gates read linalg right and can fail; with triton-ascend at hand, the kernel passes them and computes right.

What is compiled runs on NumPy arrays (executor.py) and is held to the oracle: the compiled kernel, not its source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from faops.backends.triton.ascend import space
from faops.backends.triton.ascend.compile import Linalg, compile_launch
from faops.backends.triton.ascend.gates import buffers, code, command
from faops.backends.triton.ascend.gates.cases import DTYPES, FEATURES, HEAD_DIMS, Case, defaults
from faops.backends.triton.ascend.gates.linalg import element, parse, shape, size_bytes
from faops.errors import CompileError, UnavailableError
from tests.triton.ascend.compiled import ROOT, compile_cases, execute, gates
from tests.triton.ascend.executor import run

# Written by hand: a loop with both products and a little of everything that the compiler writes.
SAMPLE = (Path(__file__).parent / "sample.mlir").read_text()
CASE = Case(16, "float16", "causal", space.make_config(16, 32, 20))


# ---------------------------------------------------------------------------------------------- reading linalg


def test_operations_and_blocks() -> None:
    function = parse(SAMPLE)
    names = [one.name for one in function.blocks[0].operations]
    assert names[0] == "arith.constant" and names[-1] == "return" and names.count("scf.for") == 1
    assert function.blocks[0].arguments[:3] == ["%arg0", "%arg1", "%arg2"] and len(function.blocks[0].arguments) == 11
    (loop,) = (one for one in function.walk() if one.name == "scf.for")
    assert loop.results == ["%7#0", "%7#1"] and loop.blocks[0].arguments == ["%arg11", "%arg12", "%arg13"]
    assert loop.operands == ["%arg8", "%6", "%c32_i32", "%3", "%5"]
    (reduce,) = (one for one in function.walk() if one.name == "linalg.reduce")
    assert reduce.blocks[0].arguments == ["%in", "%init"]
    assert reduce.blocks[0].operations[0].operands == ["%in", "%init"]


PLACES = """    %40 = linalg.generic {iterator_types = ["parallel"]} outs(%2 : tensor<16xi32>) {
    ^bb0(%out: i32):
      %41 = linalg.index 0 : index
      linalg.yield %41 : index
    } -> tensor<16xi32>
    return
"""


def test_labelled_block() -> None:
    (found,) = (one for one in parse(SAMPLE.replace("    return\n", PLACES)).walk() if one.name == "linalg.generic")
    assert found.blocks[0].arguments == ["%out"] and len(found.blocks[0].operations) == 2
    assert found.results == ["%40"] and shape(found.type) == (16,) and element(found.type) == "i32"


def test_types() -> None:
    kinds = {one.results[0]: one.type for one in parse(SAMPLE).walk() if len(one.results) == 1}
    assert kinds["%c-2_i32"] == "i32" and kinds["%cst_0"] == "f32" and kinds["%9"] == "i1"
    assert shape(kinds["%16"]) == (16, 32) and element(kinds["%16"]) == "f16" and size_bytes(kinds["%16"]) == 1024
    assert shape(kinds["%reduced"]) == (16,) and shape(kinds["%transposed"]) == (16, 32)
    assert size_bytes("memref<?x4xf32>") == 0 and size_bytes("i32") == 0 and size_bytes("tensor<16x16xi1>") == 32


@pytest.mark.parametrize(
    "text", ["", "module {\n}\n", SAMPLE.replace("    return\n", "    what is this\n"), SAMPLE[:-4]]
)
def test_no_linalg(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def test_bytes_alive() -> None:
    """At the subtraction: a product of 2 KB, as much to subtract, the 1 KB result so far, and the largest score."""
    function = parse(SAMPLE)
    most = 2 * 2048 + 1024 + 64
    assert buffers.unified_bytes(function, multibuffer=False) == most // 2
    moved = 2048 + 1024 + 1024  # both products and the weights
    assert buffers.unified_bytes(function, multibuffer=True) == (most + moved) // 2
    loaded = SAMPLE.replace("%13 = linalg.matmul", "%18 = arith.extf %10 : tensor<32x16xf16> to tensor<32x16xf32>\n"
                            "      %13 = linalg.matmul")  # fmt: skip
    assert buffers.unified_bytes(parse(loaded), multibuffer=False) == (most + 1024) // 2  # a vector core reads it, too


def test_executes() -> None:
    x, out = np.random.randn(32 * 16 + 32).astype(np.float16), np.full(256, np.nan, np.float32)
    run(parse(SAMPLE), [x, out, 1], 1)
    a = torch.from_numpy(x[:512]).reshape(32, 16).float()
    scores = a[:16] @ a.T
    expected = (scores - scores.amax(1, keepdim=True)).exp().half().float() @ a
    torch.testing.assert_close(torch.from_numpy(out).reshape(16, 16), expected, atol=1e-2, rtol=1e-2)
    with pytest.raises(AssertionError, match="out of bounds"):
        run(parse(SAMPLE), [x[:500], out, 1], 1)
    run(parse(SAMPLE), [x, out, 2], 1)  # the second round loads nothing
    assert np.isnan(out).all()


# ---------------------------------------------------------------------------------------------- the gates can fail


def failures(text: str, case: Case = CASE) -> tuple[str, ...]:
    launch, _ = case.launch()
    return code.check_linalg(case, launch, Linalg(text, (), 0.0)).failures


def test_sample_passes() -> None:
    assert failures(SAMPLE) == ()


BROKEN: dict[str, tuple[Callable[[str], str], str]] = {
    "foreign": (lambda text: text.replace("math.exp", "tt.exp"), "operations that are not linalg: tt.exp"),
    "scattered": (lambda text: text.replace("hivm.unlikely_condition", "ExtractedLoadOrStore"), "element by element"),
    "products": (lambda text: text.replace("linalg.matmul {input", "linalg.fill {input", 1), r"\[1\] products"),
    "mix": (lambda text: text.replace('"mix"', '"aiv"'), "cube and vector cores together"),
    "compare": (
        lambda text: text.replace("%14 = arith.subf %13, %broadcasted : tensor<16x32xf32>",
                                  "%14 = arith.cmpi slt, %13, %broadcasted : tensor<16x32xi32>"),
        "integers are compared",
    ),
    "wide": (
        lambda text: text.replace("%14 = arith.subf %13, %broadcasted : tensor<16x32xf32>",
                                  "%14 = arith.addi %13, %broadcasted : tensor<16x32xi64>"),
        "64-bit integers",
    ),
    "bits": (
        lambda text: text.replace("outs(%0 : tensor<16x32xf32>) dimensions", "outs(%0 : tensor<16x32xi1>) dimensions"),
        "bits are spread",
    ),
    "planned": (lambda text: text.replace("16x32xf32", "16x128xf32"), "were planned for"),
    "unified": (lambda text: text.replace("16x32xf32", "16x8192xf32"), f"it has {192 * 1024}"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_gate_fails(name: str) -> None:
    broken, message = BROKEN[name]
    found = failures(broken(SAMPLE))
    assert any(pytest.raises(AssertionError, match=message).matches(AssertionError(one)) for one in found), found


def test_gates_on_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launch, _ = CASE.launch()
    for grid in ((65536, 1, 1), (2, 2, 1), (0, 1, 1)):
        found = code.check_linalg(CASE, replace(launch, grid=grid), Linalg(SAMPLE, (), 0.0))
        assert [one for one in found.failures if "65535 programs" in one]
    odd = replace(CASE, config=space.make_config(24, 32, 20))
    assert any("multiples of 16" in one for one in failures(SAMPLE, odd))


def test_compiling_needs_triton_ascend() -> None:
    with pytest.raises(UnavailableError, match="triton-ascend is not installed"):
        compile_launch(*CASE.launch())
    assert "triton-ascend is not installed" in code.check_case(CASE).failures[0]


# ---------------------------------------------------------------------------------------------- the command


def test_command_without_triton_ascend(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    assert "cannot be checked: triton-ascend is not installed" in capsys.readouterr().err


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def compiled(launch: object, tensors: object) -> Linalg:
        if compiled_to is None:
            raise CompileError("ub overflow", log="")
        return Linalg(compiled_to, ("x", "out"), 0.5)

    monkeypatch.setattr(command, "unavailable", lambda: "")
    monkeypatch.setattr(command, "compile_launch", compiled)
    monkeypatch.setattr(code, "compile_launch", compiled)
    wanted = ["--head-dim", "64", "--feature", "full", "--feature", "lse"]
    compiled_to: str | None = SAMPLE
    assert command.main(wanted) == 0
    assert "2 kernels checked, 0 fail" in capsys.readouterr().out
    assert command.main([*wanted, "--write", str(tmp_path)]) == 0
    (case,) = defaults([64], ["float16"], ["full"])
    assert (tmp_path / f"{case}.mlir").read_text() == f"// x out\n{SAMPLE}"
    compiled_to = None
    assert command.main(wanted) == 1
    assert "2 kernels checked, 2 fail" in capsys.readouterr().out
    assert command.main([*wanted, "--write", str(tmp_path)]) == 1
    assert "ub overflow" in capsys.readouterr().err


def test_cases() -> None:
    everything = command.cases_of(command._parser().parse_args(["--all"]))
    assert {case.feature for case in everything} == set(FEATURES)
    assert {(case.head_dim, case.dtype) for case in everything} == {(d, t) for d in HEAD_DIMS for t in DTYPES}
    assert len(set(map(str, everything))) == len(everything) > 300


# ---------------------------------------------------------------------------------------------- what was compiled


@pytest.mark.full
def test_gates_hold() -> None:
    done = gates("--head-dim", "64", "--feature", "everything")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kernels checked, 0 fail" in done.stdout


@pytest.mark.full
def test_all_gates_hold() -> None:
    done = gates("--head-dim", "40", "--head-dim", "128", "--head-dim", "256", *(f"--dtype={name}" for name in DTYPES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
def test_gates_hold_in_the_tuning_space() -> None:
    for feature in ("causal", "everything"):
        done = gates("--head-dim", "64", "--head-dim", "256", "--feature", feature, "--space")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
def test_upstream_triton_is_told_apart() -> None:
    done = gates(path=str(ROOT))
    assert done.returncode == 2 and "triton-ascend is not installed" in done.stderr and not done.stdout


def test_compiled_kernel_computes_right(tmp_path: Path) -> None:
    cases = list(defaults([40], ["float16"], ["window", "everything"]))
    for case, text in compile_cases(cases, tmp_path).items():
        for lengths in ((257, 129), (63, 200)):
            execute(case, text, *lengths)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("head_dim", [40, 64, 256])
def test_every_feature_computes_right(tmp_path: Path, head_dim: int, dtype: str) -> None:
    for case, text in compile_cases(list(defaults([head_dim], [dtype], list(FEATURES))), tmp_path).items():
        for lengths in ((257, 129), (65, 300), (63, 65), (18, 50)):
            execute(case, text, *lengths)
