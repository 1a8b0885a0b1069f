"""The gates hold for the kernels, and each of them fails for a kernel that breaks what it guards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from faops.backends.cuda_raw import emulator
from faops.backends.cuda_raw.gates import command as gates
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.gates.cases import FEATURES, HEAD_DIMS, TARGETS, Case, default_configs, everything
from faops.backends.cuda_raw.gates.code import (
    MARGIN_SPILL_BYTES,
    check_code,
    matrix_opcode,
    predicted_products,
)
from faops.backends.cuda_raw.gates.counts import check_counts, visible_blocks
from faops.backends.cuda_raw.specialize import Specialised
from faops.backends.cuda_raw.targets import Target
from faops.backends.cuda_raw.tiles import SM75, SM80, make_config
from tests.cuda_raw.sources import need_compiler

need_compiler()
if reason := sass.missing() or emulator.missing():
    pytest.skip(f"NOT TESTED, no kernel went through the gates: {reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("emulator_here", "kept_cubins")
TURING, AMPERE = Target("sm_75"), Target("sm_80")


def default(target: Target, head_dim: int, dtype: torch.dtype = torch.float16, feature: str = "causal") -> Case:
    return Case(target, default_configs(target, head_dim, feature)[0], head_dim, dtype, feature)


def changed(case: Case, old: str, new: str) -> Specialised:
    """The case's kernel with ``old`` replaced in its sources; it must stand there exactly once."""
    kernel = case.kernel()
    source = kernel.source
    count = source.text.count(old) + sum(text.count(old) for _, text in source.headers)
    assert count == 1, f"{old!r} stands {count} times in the sources"
    headers = tuple((name, text.replace(old, new)) for name, text in source.headers)
    return replace(kernel, source=replace(source, headers=headers, text=source.text.replace(old, new)))


# ---------------------------------------------------------------------------------------------- the kernels


def _sample() -> list[gates.Job]:
    cases = [
        default(TURING, 96, feature="varlen"),
        default(AMPERE, 96, torch.bfloat16, feature="mask"),
        default(AMPERE, 128),
        default(TURING, 128),
        default(Target("sm_90a"), 64, torch.bfloat16),
        default(AMPERE, 256, torch.bfloat16),
    ]
    return list(gates.jobs_of(cases))


@pytest.mark.parametrize(
    "job",
    [pytest.param(job, marks=[pytest.mark.full] if i > 2 else [], id=str(job.case)) for i, job in enumerate(_sample())],
)
def test_kernels_hold(job: gates.Job) -> None:
    result = gates.check(job)
    assert not result.failures, "\n".join(result.failures)
    assert not job.counted or result.figures["wavefronts"] > 0


@pytest.mark.full
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_holds(target: str, head_dim: int) -> None:
    jobs = list(gates.jobs_of(everything([Target(target)], [head_dim])))
    failures = [f"{result.case}: {text}" for result in map(gates.check, jobs) for text in result.failures]
    assert len(jobs) >= len(FEATURES) and not failures, "\n".join(failures)


# ---------------------------------------------------------------------------------------------- each gate bites


@pytest.mark.parametrize(("target", "head_dim"), [
    (TURING, 64), (AMPERE, 32), pytest.param(AMPERE, 96, marks=pytest.mark.full),
], ids=str)  # fmt: skip
def test_tile_without_its_twist_has_bank_conflicts(target: Target, head_dim: int) -> None:
    case = default(target, head_dim)
    plain = changed(case, "return (row / (8 / SPREAD)) & (SPREAD - 1);", "return row * 0;")
    failures = check_counts(case, plain).failures
    assert any("ldmatrix" in failure and "bank conflicts" in failure for failure in failures), failures
    assert any("store_shared_u32" in failure and "bank conflicts" in failure for failure in failures), failures
    assert not check_counts(case).failures


@pytest.mark.parametrize(
    ("target", "opcode"), [pytest.param(TURING, "LDG", marks=pytest.mark.full), (AMPERE, "LDGSTS")], ids=str
)
def test_narrow_copies(target: Target, opcode: str) -> None:
    case = default(target, 64)
    failures = check_code(case, changed(case, "COPY_BYTES = 16", "COPY_BYTES = 8")).failures
    assert any(f"{opcode} of 8 bytes" in failure for failure in failures), failures


def test_narrow_stores() -> None:
    case = default(AMPERE, 64)
    failures = check_code(case, changed(case, "OUT_VECTORS = true", "OUT_VECTORS = false")).failures
    assert any("STG of 2 bytes" in failure for failure in failures), failures
    assert any("not stored 16 bytes at a time" in failure for failure in failures), failures


def test_tile_too_large_for_the_registers() -> None:
    case = replace(default(AMPERE, 128), config=make_config(128, 128, warps=4, stages=1, q_in_registers=False))
    failures = check_code(case).failures
    assert any("spill" in failure and "in the loop" in failure for failure in failures), failures


def test_default_that_spills_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few registers, which the tuning space allows for its largest tiles, are too many for a default."""
    spilling = make_config(128, 32, warps=4, stages=1, q_in_registers=False)
    case = Case(Target("sm_90a"), spilling, 160, torch.float16)
    found = check_code(case)
    assert 0 < found.figures["spill_bytes"] <= 2 * MARGIN_SPILL_BYTES  # stores and loads
    assert not found.failures
    monkeypatch.setattr(Case, "is_default", True)
    assert any("bytes of spill stores" in failure for failure in check_code(case).failures)


def test_tile_too_large_for_two_blocks() -> None:
    case = default(AMPERE, 64)
    kernel = replace(case.kernel(), shared_bytes=100 * 1024)
    assert any("1 blocks fit a multiprocessor, 2 wanted" in failure for failure in check_code(case, kernel).failures)
    kernel = replace(case.kernel(), shared_bytes=200 * 1024)
    failures = check_code(replace(case, head_dim=128), kernel).failures
    assert any("0 blocks fit a multiprocessor" in failure for failure in failures), failures


def test_wrong_matrix_instruction() -> None:
    case = default(AMPERE, 64)
    failures = check_code(case, changed(case, "MMA_DEPTH = 16", "MMA_DEPTH = 8")).failures
    assert any("HMMA.1688.F32, expected HMMA.16816.F32" in failure for failure in failures), failures
    assert any("256 HMMA in the loop over keys, 128 expected" in failure for failure in failures), failures
    failures = check_code(replace(case, dtype=torch.bfloat16), case.kernel()).failures
    assert any("HMMA.16816.F32, expected HMMA.16816.F32.BF16" in failure for failure in failures), failures


def test_product_computed_twice() -> None:
    case = default(AMPERE, 64)
    once = "values.multiply(rows, scores, ring.value_slot(i));"
    failures = check_code(case, changed(case, once, once + once)).failures
    assert any("HMMA in the loop over keys" in failure for failure in failures), failures
    assert any("LDSM in the loop over keys" in failure for failure in failures), failures


@pytest.mark.parametrize("feature", ["causal", "window"])
def test_blocks_that_nobody_sees_are_counted(feature: str) -> None:
    case = default(AMPERE, 64, feature=feature)
    changes = {
        "causal": ("end_key = smaller(keys, last_row + shift + params.window_right + 1);", "end_key = keys;"),
        "window": ("first_key = larger(0, first_row + shift - params.window_left);", "first_key = 0;"),
    }
    failures = check_counts(case, changed(case, *changes[feature])).failures
    assert any("bytes loaded" in failure for failure in failures), failures
    assert any("matrix instructions were run" in failure for failure in failures), failures


def test_scattered_reads_are_counted() -> None:
    """Chunks of a row read by threads that are far apart: the same bytes, in sectors fetched over and over."""
    case = default(AMPERE, 64)
    narrow = changed(case, "COPY_BYTES = 16", "COPY_BYTES = 4")
    failures = check_counts(case, narrow).failures
    assert any("bytes loaded" in failure for failure in failures), failures


# ---------------------------------------------------------------------------------------------- what is expected


def test_predictions_of_a_tile_worked_out_by_hand() -> None:
    # 32 rows a warp, 64 keys, head dim 128. Scores: 2 x 8 products of 16 x 8, each 128 deep. Result: 2 x 16, 64 deep.
    config = make_config(128, 64, warps=4, stages=1, q_in_registers=False)
    assert predicted_products(Case(AMPERE, config, 128, torch.float16)) == 2 * 8 * (128 // 16) + 2 * 16 * (64 // 16)
    assert predicted_products(Case(TURING, config, 128, torch.float16)) == 2 * 8 * (128 // 8) + 2 * 16 * (64 // 8)
    assert matrix_opcode(Case(AMPERE, config, 128, torch.bfloat16)) == "HMMA.16816.F32.BF16"
    assert matrix_opcode(Case(TURING, config, 128, torch.float16)) == "HMMA.1688.F32"


def test_visible_blocks() -> None:
    inputs, _ = default(AMPERE, 64).call(64, 1)
    assert visible_blocks(inputs, 32, 16).tolist() == [[True, True, False, False], [True] * 4]
    inputs.window_left = 8
    assert visible_blocks(inputs, 16, 16).tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]
    inputs.window_left = inputs.window_right = -1
    assert visible_blocks(inputs, 32, 32).all()


# ---------------------------------------------------------------------------------------------- which kernels


def test_everything_is_what_it_says() -> None:
    cases = list(everything([Target(name) for name in TARGETS], HEAD_DIMS))
    assert len(cases) == len(set(cases))
    assert {case.target.name for case in cases} == set(TARGETS)
    for target in map(Target, TARGETS):
        of_target = [case for case in cases if case.target == target]
        assert {case.feature for case in of_target} == set(FEATURES)
        assert {case.head_dim for case in of_target} == set(HEAD_DIMS)
        assert {case.family for case in of_target} == {SM75 if target == TURING else SM80}
        dtypes = {torch.float16} if target == TURING else {torch.float16, torch.bfloat16}
        assert {case.dtype for case in of_target} == dtypes


def test_emulator_runs_each_kernel_for_one_target() -> None:
    case = default(AMPERE, 64)
    jobs = list(gates.jobs_of([case, replace(case, target=Target("sm_90a")), case, default(TURING, 64)]))
    assert [job.counted for job in jobs] == [True, False, True]
    assert not any(job.counted for job in gates.jobs_of([case], counts=False))


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_changes_the_kernel(feature: str) -> None:
    sources = {name: default(AMPERE, 64, feature=name).kernel().source for name in FEATURES}
    same = [name for name, source in sources.items() if source == sources[feature]]
    assert same == [feature]


# ---------------------------------------------------------------------------------------------- the command


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--target", "sm_75", "--head-dim", "64", "--feature", "causal", "--jobs", "1"]
    assert gates.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("holds") == 2 and "2 kernels checked, 0 fail" in printed


def test_command_fails_with_a_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faops.backends.cuda_raw.gates.code.wanted_blocks", lambda case: 4)
    arguments = ["--target", "sm_75", "--head-dim", "64", "--feature", "causal", "--no-counts", "--jobs", "1"]
    assert gates.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "2 blocks fit a multiprocessor, 4 wanted" in printed and "2 kernels checked, 2 fail" in printed


def test_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "find", lambda: None)
    assert gates.main([]) == 2
    assert "pip install nvidia-cuda-nvdisasm" in capsys.readouterr().err


def test_kernel_that_does_not_compile_fails() -> None:
    case = default(AMPERE, 64)
    failures = check_code(case, changed(case, "WARPS = 4", "WARPS = 3")).failures
    assert len(failures) == 1 and "does not compile for sm_80" in failures[0]
