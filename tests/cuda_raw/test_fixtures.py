"""The wrappers of csrc/ptx.cuh in the emulator: against numpy, and against what real GPUs answered where any did."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import fixtures
from benchmarks.gpu.micro import Micro, group_source, is_nan, words_of
from benchmarks.gpu.replay import disagreements
from benchmarks.gpu.runners import Emulated, answer
from benchmarks.gpu.wrappers import GROUPS
from faops.architectures import KNOWN_DEVICES, cuda_number
from faops.backends.cuda_raw.source import CSRC

needs_emulator = pytest.mark.usefixtures("emulator_here")
CARDS = ("t4", "a100")
RECORDED = fixtures.recorded()


def run_all(card: str, micros: list[Micro]) -> dict[str, np.ndarray]:
    runner, source = Emulated(card), group_source(micros)
    return {
        micro.name: answer(runner, micro, source, index)
        for index, micro in enumerate(micros)
        if micro.arch <= cuda_number(runner.profile.arch)
    }


def test_every_wrapper_has_a_micro_test() -> None:
    text = (CSRC / "ptx.cuh").read_text()
    wrappers = set(re.findall(r"^DEVICE [^(\n]*?(\w+)\(", text, re.MULTILINE))
    assert len(wrappers) > 30 and "ldmatrix_transposed" in wrappers
    bodies = "\n".join(micro.body for make in GROUPS.values() for micro in make())
    used = set(re.findall(r"\b(\w+)(?:<\w+>)?\(", bodies))
    # Every test finds its own place through these two.
    assert wrappers - used - {"thread_index", "shared_base"} == set()


@needs_emulator
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("card", CARDS)
def test_micro_tests(card: str, group: str) -> None:
    micros = GROUPS[group]()
    answers = run_all(card, micros)
    assert len(answers) >= 3
    wrong = {micro.name: micro.wrong(answers[micro.name]) for micro in micros if micro.name in answers}
    assert not {name: reason for name, reason in wrong.items() if reason}


@pytest.mark.parametrize("group", GROUPS)
def test_a_changed_answer_is_wrong(group: str) -> None:
    """A bit that matters, changed in any one word, is found; so is a word that was never written."""
    for micro in GROUPS[group]():
        assert not micro.wrong(micro.expected.copy())
        for place in {0, micro.expected.size // 2, micro.expected.size - 1}:
            changed = micro.expected.copy()
            if micro.kind == "float32" and is_nan(changed[place : place + 1], micro.kind)[0]:
                changed[place] = words_of([1.0], np.float32)[0]  # any bit of a NaN may change, but it must be one
            else:
                changed[place] ^= 0x10000000  # an exponent's bit, or any
            assert micro.wrong(changed), micro.name
        assert micro.wrong(micro.expected[:-1]), micro.name


@needs_emulator
@pytest.mark.parametrize(
    ("group", "name", "usual", "changed"),
    [
        ("memory", "ldmatrix", "ldmatrix(", "ldmatrix_transposed("),
        ("memory", "copy_async_16", "other % 17", "16"),
        ("memory", "shuffle_xor_u32", "1 << i", "16 >> i"),
        ("matrix", "mma_m16n8k16_f16_random", "(c, x, y[0], y[1])", "(c, x, y[1], y[0])"),
        ("matrix", "mma_m16n8k16_bf16_random", "mma_m16n8k16_bf16(", "mma_m16n8k16_f16("),
        ("arithmetic", "exp2_fast", "exp2_fast", "log2_fast"),
        ("arithmetic", "pack_bf16", "pack_bf16", "pack_f16"),
        ("arithmetic", "maximum", "maximum(", "divide_fast("),
    ],
)
def test_a_wrong_kernel_is_found(group: str, name: str, usual: str, changed: str) -> None:
    (micro,) = [micro for micro in GROUPS[group]() if micro.name == name]
    assert usual in micro.body
    altered = copy.copy(micro)
    object.__setattr__(altered, "body", micro.body.replace(usual, changed))
    assert altered.wrong(answer(Emulated("a100"), altered, group_source([altered]), 0))


# ---------------------------------------------------------------------------------------------- recorded answers


@needs_emulator
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_emulator_answers_like_the_device(path: Path) -> None:
    content = fixtures.read(path)
    card = next(name for name, device in KNOWN_DEVICES.items() if device.arch == content["arch"])
    assert dict(disagreements(path.stem, content, Emulated(card))) == {}


def test_there_are_recorded_answers() -> None:
    if not RECORDED:
        pytest.skip(
            f"NOT TESTED, the emulator was not held against a device: no GPU's answers lie in {fixtures.FOLDER}"
        )
    assert all(fixtures.read(path)["answers"] for path in RECORDED)


@needs_emulator
def test_recording_and_replaying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded answers are given again; a changed one, or a changed test, is not."""
    monkeypatch.setattr(fixtures.nvrtc, "version_text", lambda: "13.0")
    micros = GROUPS["arithmetic"]()
    by_name = {micro.name: micro for micro in micros}
    answers = {
        name: fixtures.answer_of("arithmetic", by_name[name], words) for name, words in run_all("a100", micros).items()
    }
    runner = Emulated("a100")
    (path,) = fixtures.write(tmp_path, runner.profile, answers)
    assert path == tmp_path / "sm_80" / "arithmetic.json" and fixtures.recorded(tmp_path) == [path]
    content = fixtures.read(path)
    assert content["device"] == runner.profile.name and content["answers"].keys() == by_name.keys()
    assert dict(disagreements("arithmetic", content, runner)) == {}
    words = fixtures.of_text(content["answers"]["multiply_high"]["words"])
    words[5] ^= 1
    content["answers"]["multiply_high"]["words"] = fixtures.to_text(words)
    content["answers"]["exp2_fast"]["asked"] = "0" * 16
    content["answers"]["no_such_test"] = content["answers"]["as_float"]
    found = dict(disagreements("arithmetic", content, runner))
    assert found.keys() == {"multiply_high", "exp2_fast", "no_such_test"}
    assert "1 of 256 differ" in found["multiply_high"] and "record it again" in found["exp2_fast"]
