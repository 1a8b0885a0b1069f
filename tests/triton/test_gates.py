"""The gates hold for the kernels, and each of them fails for a kernel that breaks what it guards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from faops.backends.triton import versions
from faops.backends.triton.compile import Binary
from faops.backends.triton.gates import code, command
from faops.backends.triton.gates.cases import FEATURES, KERNELS, Case, defaults, spaces
from faops.backends.triton.gates.code import AMPERE, BLACKWELL, HOPPER, GateResult, check_binary
from faops.backends.triton.launch import Launch, Tensors
from faops.errors import UnavailableError
from faops.registry import Config

ARCHS = command.SAMPLE_ARCHS
COPY = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;\n"
NARROW_COPY = COPY.replace("0x10", "0x4").replace(".cg.", ".ca.")
WORDS = {
    AMPERE: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32\n",
    HOPPER: "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16\n",
    BLACKWELL: "tcgen05.mma.cta_group::1.kind::f16\n",
}


def default(arch: str, kernel: str = "forward", feature: str = "causal", dtype: str = "float16", d: int = 64) -> Case:
    (case,) = defaults([arch], [kernel], [d], [dtype], [feature])
    return case


def failures(results: Sequence[GateResult]) -> list[str]:
    return [f"{one.case} {one.kernel}: {text}" for one in results for text in one.failures]


# ---------------------------------------------------------------------------------------------- the kernels


@dataclass(frozen=True)
class Crash(Case):
    """Takes its process down, as a compiler that crashes does."""

    def launches(self) -> list[tuple[Launch, Tensors]]:
        os._exit(3)


@dataclass(frozen=True)
class Nothing(Case):
    """A call without a launch that fails: no kernel is compiled."""

    def launches(self) -> list[tuple[Launch, Tensors]]:
        raise UnavailableError("nothing to compile")


def check_kernels(holding: Sequence[Case], failing: Sequence[Case], cache: str) -> list[GateResult]:
    """Check all of them in one process, as far as one lasts. Gives the results of those that fail."""
    results = list(command.check_all([*holding, *failing], 1, cache))
    good = [one for one in results if one.case in holding]
    assert not failures(good), "\n".join(failures(good))
    assert len(good) > len(holding) and {one.case for one in good} == set(holding)
    for one in good:
        assert one.figures["registers"] > 0
    instructions = {one.case.arch: one.figures for one in good if one.kernel == "forward.attention_forward"}
    for arch, instruction in {"sm_80": AMPERE, "sm_90": HOPPER, "sm_100": BLACKWELL}.items():
        assert instructions[arch][instruction] > 0
    return [one for one in results if one.case in failing]


def test_kernels_hold_and_failures_are_found(tmp_path: Path) -> None:
    """Every family of kernels on some architecture; a crash concerns neither those before nor those behind it."""
    half_as_large = Config(block_m=128, block_n=64, num_warps=8, num_stages=3)
    holding = [
        default("sm_80", d=32),
        default("sm_80", "backward", d=32),
        default("sm_90"),
        default("sm_90", "decode"),
        replace(default("sm_100"), config=half_as_large),
    ]
    fields = ("sm_80", "forward", 64, "float16", "causal", Config())
    no_power_of_two = Config(block_m=48, block_n=64, num_warps=4, num_stages=2)
    too_many_stages = Config(block_m=16, block_n=128, num_warps=4, num_stages=9)
    failing = [
        replace(default("sm_80"), config=no_power_of_two),
        replace(default("sm_89"), config=too_many_stages),
        Crash(*fields),
        Nothing(*fields),
    ]
    uncompiled, large, crashed, nothing = check_kernels(holding, failing, str(tmp_path))
    assert len(uncompiled.failures) == 1 and "does not compile for sm_80" in uncompiled.failures[0]
    assert any("bytes of shared memory" in text for text in large.failures), large
    assert crashed.failures == ("the compiler crashes",)
    assert nothing.failures == ("nothing to compile",)


@pytest.mark.full
def test_more_kernels_hold(tmp_path: Path) -> None:
    holding = [
        default("sm_80"),
        default("sm_80", "backward", "varlen"),
        default("sm_89", dtype="bfloat16", d=128),
        default("sm_90"),
        default("sm_90", "decode", "paged"),
        default("sm_100"),
    ]
    assert check_kernels(holding, [], str(tmp_path)) == []


def _everything(arch: str) -> list[Case]:
    cases = [
        *defaults([arch], list(KERNELS), (64, 128), ("float16",), list(FEATURES)),
        *defaults([arch], list(KERNELS), (32, 96, 192, 256), ("float16",), ("causal",)),
        *defaults([arch], list(KERNELS), (64, 128), ("bfloat16", "float32"), ("causal",)),
    ]
    if arch in ("sm_80", "sm_90"):
        kernels = list(KERNELS) if arch == "sm_80" else ["forward", "decode"]
        cases += spaces([arch], kernels, (64,), ("float16",))
    return list(dict.fromkeys(cases))


@pytest.mark.full
@pytest.mark.parametrize("arch", ARCHS)
def test_many_kernels_hold(arch: str, tmp_path: Path) -> None:
    results = list(command.check_all(_everything(arch), 2, str(tmp_path)))
    assert len(results) > 100 and not failures(results), "\n".join(failures(results))


# ---------------------------------------------------------------------------------------------- each gate bites


def made(case: Case) -> Launch:
    """The launch of the case's kernel that multiplies most."""
    return next(launch for launch, _ in case.launches() if code.multiplies(launch))


def binary(text: str, **changed: int) -> Binary:
    plain = Binary(text, b"", shared_bytes=49152, threads=128, registers=128, spill_bytes=0, seconds=1.0)
    return replace(plain, **changed)


def found(case: Case, text: str, **changed: int) -> tuple[str, ...]:
    return check_binary(case, made(case), binary(text, **changed)).failures


def good(case: Case) -> str:
    return WORDS[code.expected_instruction(case.arch, made(case))] * 8 + COPY * 4


@pytest.mark.parametrize("arch", ARCHS)
def test_a_good_kernel_holds(arch: str) -> None:
    case = default(arch)
    assert found(case, good(case)) == ()


def test_spills() -> None:
    case = default("sm_80")
    other = replace(case, config=Config({**case.config, "num_stages": 5}))
    assert not other.is_default
    (text,) = found(case, good(case), spill_bytes=8)
    assert "spills 8 bytes, 0 allowed" in text
    assert found(other, good(case), spill_bytes=code.MARGIN_SPILL_BYTES) == ()
    (text,) = found(other, good(case), spill_bytes=code.MARGIN_SPILL_BYTES + 8)
    assert f"{code.MARGIN_SPILL_BYTES} allowed" in text


@pytest.mark.parametrize(("arch", "limit"), [("sm_80", 163), ("sm_89", 99), ("sm_90", 227), ("sm_100", 227)])
def test_shared_memory(arch: str, limit: int) -> None:
    case = default(arch)
    assert found(case, good(case), shared_bytes=limit << 10) == ()
    (text,) = found(case, good(case), shared_bytes=(limit << 10) + 16)
    assert f"{arch} has {limit << 10}" in text


@pytest.mark.parametrize(("arch", "instruction"), [("sm_90", HOPPER), ("sm_100", BLACKWELL)])
def test_instruction_of_an_older_architecture(arch: str, instruction: str) -> None:
    case = default(arch)
    (text,) = found(case, WORDS[AMPERE] * 8 + COPY)
    assert f"no {instruction}, which the tiles have room for" in text
    few = default(arch, feature="few")  # sixteen rows: the instruction of Ampere
    assert found(few, WORDS[AMPERE] * 8 + COPY) == ()


def test_no_matrix_instruction() -> None:
    (text,) = found(default("sm_80"), "fma.rn.f32 %f1, %f2, %f3;\n" * 100 + COPY)
    assert "no matrix instruction" in text


def test_exact_float32() -> None:
    case = default("sm_80", dtype="float32")
    assert found(case, "fma.rn.f32 %f1, %f2, %f3;\n" + COPY) == ()
    for text in (WORDS[AMPERE] + "fma.rn.f32 %f1;\n" + COPY, COPY):
        (failure,) = found(case, text)
        assert "exact float32 products take fma" in failure


def test_narrow_copies() -> None:
    case = default("sm_80")
    assert found(case, good(case) + NARROW_COPY * 15) == ()
    (text,) = found(case, good(case) + NARROW_COPY * 16)
    assert "of 128 bytes that the code's asynchronous copies bring a thread 64 come 16 at a time" in text
    (text,) = found(case, good(case).replace(COPY, NARROW_COPY))
    assert "of 16 bytes" in text and "0 come 16 at a time" in text
    (text,) = found(case, good(case).replace(COPY, ""))
    assert "of 0 bytes" in text
    one_stage = replace(made(case), options={"num_warps": 4, "num_stages": 1})
    assert check_binary(case, one_stage, binary(good(case).replace(COPY, ""))).failures == ()


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """What the command checks; those of sm_89 fail."""
    seen: list[Case] = []

    def check_all(cases: Sequence[Case], processes: int, cache: str) -> Iterator[GateResult]:
        for case in cases:
            seen.append(case)
            yield GateResult(case, "kernel", {"registers": 7}, ("too slow",) if case.arch == "sm_89" else ())

    monkeypatch.setattr(command, "check_all", check_all)
    return seen


def test_command(checked: list[Case], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--kernel", "forward", "--head-dim", "128"]
    assert command.main(["--arch", "sm_80", *arguments]) == 0
    assert [str(case.arch) for case in checked] == ["sm_80"]
    assert "1 kernels of 1 calls checked, 0 fail" in capsys.readouterr().out
    assert command.main(["--arch", "sm_80", "--arch", "sm_89", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "holds" in printed and "FAILS\n    too slow" in printed and "2 calls checked, 1 fail" in printed


def test_command_chooses(checked: list[Case]) -> None:
    def chosen(*arguments: str) -> list[Case]:
        checked.clear()
        command.main(["--arch", "sm_90", *arguments])
        return list(checked)

    sample = chosen()
    assert {case.kernel for case in sample} == set(KERNELS) and all(case.is_default for case in sample)
    assert {case.feature for case in chosen("--feature", "bias", "--feature", "mask")} == {"bias", "mask"}
    assert {case.dtype for case in chosen("--dtype", "float32")} == {"float32"}
    space = chosen("--space", "--kernel", "forward", "--head-dim", "64")
    assert sum(not case.is_default for case in space) > 5 and len(set(space)) == len(space)
    everything = chosen("--all")
    assert {case.feature for case in everything} == set(FEATURES) and len(everything) > len(space)


def test_command_without_triton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(versions, "installed", lambda: None)
    assert command.main([]) == 2
    assert "Triton is not installed" in capsys.readouterr().err


def test_cases_are_what_they_say() -> None:
    for kernel, feature in itertools.product(KERNELS, FEATURES):
        for case in defaults(["sm_80"], [kernel], [64], ["float16"], [feature]):
            launches = case.launches()
            named = {name for launch, _ in launches for name in launch.constants if launch.constants[name] is True}
            tensors = [tensor for _, given in launches for tensor in given if tensor is not None]
            expected = {"dropout": "DROPOUT", "softcap": "SOFTCAP", "window": "WINDOW_LEFT", "varlen": "VARLEN"}
            assert feature not in expected or expected[feature] in named, case
            if feature == "mask":
                assert any(tensor.dtype == torch.uint8 for tensor in tensors), case
