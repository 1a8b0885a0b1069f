"""The GPU suite without a GPU: its processes, its report, and its checks, which must find what is wrong."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu import attention, compiling, correctness, report, supervisor, triton_compile
from benchmarks.gpu.attention import FAMILIES, Trial, hold
from benchmarks.gpu.options import SECTIONS, Options
from benchmarks.gpu.outcome import Item, Outcome, SkipError, WrongError, perform
from benchmarks.gpu.supervisor import Section
from faops.backends.cuda_raw import emulator, nvrtc
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.space import space
from faops.backends.cuda_raw.specialize import Specialised
from faops.device import known
from faops.operands import Operands
from tests.support import FEATURES

FAKE = "tests.benchmarks.fake_section"
FOREVER = 1e18


@pytest.fixture
def kernel_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's kernels, in processes of the suite too, are kept between runs."""
    cache = getattr(request.config, "cache", None)
    if cache is not None:
        monkeypatch.setenv("FAOPS_CACHE_DIR", str(cache.mkdir("gpu_suite")))


def run_section(card: str = "", deadline: float = FOREVER, patience: float = 2.0) -> list[Outcome]:
    return Section(FAKE, Options(card=card), deadline, lambda outcome: None, patience).run()


# ---------------------------------------------------------------------------------------------- processes


@pytest.mark.full
def test_nothing_stops_the_rest() -> None:
    """A wrong, a crashing and a hanging item each cost one item."""
    shown: list[Outcome] = []
    found = Section(FAKE, Options(), FOREVER, shown.append, patience=3.0).run()
    assert [(outcome.name, outcome.status) for outcome in found] == [
        ("fine", "ok"),
        ("wrong", "wrong"),
        ("raising", "wrong"),
        ("skipped", "skipped"),
        ("crashing", "lost"),
        ("hanging", "hung"),
        ("fine", "ok"),
    ]
    assert shown == found
    assert found[0].data == {"figure": 7} and found[1].data == {"figure": 4}
    assert "4 is not 5" in found[1].detail and "RuntimeError: CUDA error: something" in found[2].detail
    assert "second device" in found[3].detail
    assert "ended with 7" in found[4].detail and "illegal memory access" in found[4].detail
    assert "no answer for 3 seconds" in found[5].detail


def test_nothing_begins_after_the_deadline() -> None:
    found = run_section(deadline=time.time() - 1)
    assert [outcome.status for outcome in found] == ["not run"] * 7


def test_a_section_that_cannot_begin_is_lost() -> None:
    (found,) = run_section("broken")
    assert found.status == "lost" and "no such library" in found.detail


def test_a_process_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_PATIENCE", 1.0)
    (found,) = run_section("slow")
    assert (found.name, found.status) == ("starting", "hung")


def test_perform_tells_what_happened() -> None:
    def skip() -> dict[str, Any]:
        raise SkipError("no")

    def wrong() -> dict[str, Any]:
        raise WrongError("x", {"a": 1})

    def bare() -> dict[str, Any]:
        assert torch.zeros(1).sum() == 1
        return {}

    assert perform("s", Item("n", skip)).status == "skipped"
    assert perform("s", Item("n", wrong)).data == {"a": 1}
    found = perform("s", Item("n", bare))
    assert found.status == "wrong" and "assert" in found.detail
    assert Outcome.of_line(found.line()) == found


# ---------------------------------------------------------------------------------------------- the command


def test_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_suite.main([]) == 2
    said = capsys.readouterr()
    assert "no NVIDIA GPU" in said.err and not said.out


@pytest.mark.parametrize("arguments", [["--only", "x"], ["--budget", "0"], ["--emulate", "910b"], ["--jobs", "0"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_emulated_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel_cache: None) -> None:
    """The command from end to end, with the emulator in place of the GPU."""
    if reason := emulator.missing():
        pytest.skip(f"NOT TESTED, the suite did not run: {reason}")
    assert gpu_suite.main(["--emulate", "t4", "--only", "wrappers", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "Tesla T4 (sm_75, 40 multiprocessors), emulated" in said and "all well" in said
    result = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {outcome["name"]: outcome["status"] for outcome in result["outcomes"]}
    assert statuses["ldmatrix"] == "ok" and statuses["copy_async_16"] == "skipped"
    assert "wrong" not in statuses.values()
    assert not (tmp_path / "fixtures").exists()  # only a device's answers are worth recording


def test_exit_status_of_what_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "unusable", lambda card, sections: "")
    for status, expected in (("ok", 0), ("skipped", 0), ("not run", 0), ("wrong", 1), ("lost", 1), ("hung", 1)):
        outcome = Outcome("graph", "x", status)  # type: ignore[arg-type]
        monkeypatch.setattr(gpu_suite, "_run", lambda *rest, outcome=outcome: [outcome])
        assert gpu_suite.main(["--emulate", "t4", "--only", "graph", "--out", str(tmp_path)]) == expected


def test_time_is_shared_out() -> None:
    sections = gpu_suite.chosen(None, "")
    left = 100.0
    for index in range(len(sections)):
        part = gpu_suite._share(sections[index:])
        assert 0 < part <= 1
        left -= left * part
    assert left == 0 and set(sections) == {*SECTIONS, *gpu_suite.BEFORE} == set(gpu_suite.WEIGHTS)


def test_what_compiles_beforehand_comes_once_and_first() -> None:
    assert gpu_suite.chosen(None, "a100") == list(SECTIONS)
    assert gpu_suite.chosen(["graph"], "") == ["graph"]
    assert gpu_suite.chosen(["correctness"], "") == [compiling.SECTION, "correctness"]
    for only in (["timing"], ["triton_timing"], ["triton_timing", "timing"]):
        sections = gpu_suite.chosen(only, "")
        assert sections[0] == triton_compile.SECTION and sorted(sections[1:]) == sorted(only)


def test_sections_of_triton_need_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "probe", lambda: "no NVRTC")
    monkeypatch.setattr(emulator, "missing", lambda: "no compiler")
    assert gpu_suite.unusable("", ["triton_timing"]) == "" == gpu_suite.unusable("a100", ["triton_correctness"])
    assert gpu_suite.unusable("", ["wrappers"]) == "no NVRTC"
    assert gpu_suite.unusable("a100", ["wrappers"]) == "no compiler"


@pytest.mark.full
def test_side_by_side() -> None:
    """Each process does its part, and one that is lost costs only its item."""
    shown: list[Outcome] = []
    found = supervisor.run_side_by_side(FAKE, Options(), FOREVER, shown.append, 3, patience=3.0)
    expected = ["crashing", "fine", "fine", "hanging", "raising", "skipped", "wrong"]
    assert sorted(outcome.name for outcome in found) == expected == sorted(outcome.name for outcome in shown)
    assert {outcome.name for outcome in found if outcome.status in ("lost", "hung")} == {"crashing", "hanging"}


def test_rates_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(Outcome("triton_timing", "x", "ok", data={"gigabytes": {"a": 2.5}, "of_copy_bandwidth": {"a": 0.5}}))
    report.show(Outcome("triton_timing", "y", "ok"))
    assert capsys.readouterr().out == "ok       x  GB/s a 2.5  of a copy's a 0.5\n"


def test_table() -> None:
    ratios = {"sm80": {"flash": {"of_pairs": 1.25}}}
    outcomes = [
        Outcome("timing", "a", "ok", "", 2.0, {"ratios": ratios}),
        Outcome("timing", "b", "ok", "", 2.0, {"ratios": {"sm80": {"flash": {"of_pairs": 0.75}}}}),
        Outcome("graph", "c", "wrong", "it differs\nat x"),
        Outcome("compile", "d", "ok", "", 1.0, {"spill_store_bytes": 8}),
        Outcome("triton_compile", "e", "ok", "", 1.0, {"spill_bytes": 8}),
        Outcome("triton_timing", "f", "ok", "", 2.0, {"kind": "backward", "ratios": ratios}),
    ]
    text = report.table(outcomes)
    assert "forward: sm80 against flash: 1.00 times as fast (0.75 to 1.25, 2 shapes)" in text
    assert "WRONG graph: c: it differs" in text and "at x" not in text and "1 wrong" in text
    assert "backward: sm80 against flash: 1.25 times as fast (1.25 to 1.25, 1 shapes)" in text
    assert "2 kernels spill registers" in text
    assert report.table(outcomes[:1]).endswith("all well")


# ---------------------------------------------------------------------------------------------- correctness


def test_trials_cover_what_there_is() -> None:
    trials = correctness.trials(Options(card="a100"))
    assert len(trials) == len(set(map(str, trials))) or len(trials) > 300
    profile = known("a100")
    for name, family in FAMILIES.items():
        mine = [trial for trial in trials if trial.family == name]
        alone = {trial.features for trial in mine if len(trial.features) < 2}
        assert alone >= {(feature,) for feature in FEATURES if feature not in ("lse_grad", "deterministic")} | {()}
        for head_dim in correctness.HEAD_DIMS:
            tried = {trial.config for trial in mine if trial.shape["head_dim"] == head_dim}
            assert tried >= set(space(family.family, head_dim, head_dim, profile))
        assert {trial.dtype for trial in mine} == set(attention.DTYPES[name])
    assert len({trial.seed for trial in trials}) > 0.99 * len(trials)
    assert len(correctness.trials(Options(card="a100", quick=True))) < 0.6 * len(trials)
    assert {trial.family for trial in correctness.trials(Options(card="t4"))} == {"sm75"}


class Altered:
    """Writes what the oracle says, then does something to it."""

    def __init__(self, change: Any) -> None:
        self.device, self.profile, self._change = torch.device("cpu"), known("a100"), change

    def launch(self, kernel: Specialised, operands: Operands) -> None:
        q, k, v = (tensor.double().transpose(1, 2) for tensor in operands[:3])
        scores = q @ k.mT * q.shape[-1] ** -0.5
        out, lse = (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)
        assert operands.lse is not None
        operands.out.copy_(out)
        operands.lse.copy_(lse)
        self._change(operands)

    def raw(self, *rest: Any) -> None:
        raise NotImplementedError


TRIAL = Trial("sm80", torch.float16, (), None, {"seqlen_q": 40, "seqlen_k": 50, "head_dim": 16, "head_dim_v": 16}, 3)


def test_a_right_result_is_accepted() -> None:
    hold(TRIAL, Altered(lambda operands: None))


@pytest.mark.parametrize(
    "change",
    [
        lambda operands: operands.out[1, 39, 3, 15:].fill_(torch.nan),  # one element never written
        lambda operands: operands.out[0, 0, 0, :1].add_(0.02),
        lambda operands: operands.out.copy_(operands.out.roll(1, dims=1)),
        lambda operands: operands.lse[0, 0, :1].add_(1e-3),
        lambda operands: operands.lse[0, 0, :1].fill_(torch.inf),
    ],
)
def test_a_wrong_result_is_found(change: Any) -> None:
    with pytest.raises(AssertionError):
        hold(TRIAL, Altered(change))


def test_a_trial_is_the_same_everywhere() -> None:
    """What is compiled beforehand is what runs: same source, same inputs."""
    profile, device = known("a100"), torch.device("cpu")
    trial = replace(TRIAL, features=("bias", "mask", "varlen"))
    calls = [attention.prepare(trial, device, profile) for _ in range(2)]
    assert calls[0].kernel.source == calls[1].kernel.source
    assert torch.equal(calls[0].operands.q, calls[1].operands.q) and calls[0].seed == calls[1].seed
    assert calls[0].operands.out.isnan().all()


# ---------------------------------------------------------------------------------------------- compiling


def test_compiling_tells_registers_and_errors() -> None:
    if reason := nvrtc.probe():
        pytest.skip(f"NOT TESTED, no kernel was compiled: {reason}")
    source = attention.prepare(TRIAL, torch.device("cpu"), known("h200")).kernel.source
    found = compiling.compile_one("x", source, "sm_90", FOREVER)
    assert found.status == "ok" and found.data["registers"] > 32 and found.data["compile_seconds"] > 0
    broken = Source("broken", "broken", (), "not C++ at all;", 32)
    found = compiling.compile_one("x", broken, "sm_90", FOREVER)
    assert found.status == "wrong" and "does not compile" in found.detail
    assert compiling.compile_one("x", source, "sm_90", 0.0).status == "not run"
