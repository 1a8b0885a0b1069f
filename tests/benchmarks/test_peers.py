"""Every peer computes what faops computes, for every feature: else a ratio would compare different things."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cpu, peers
from benchmarks.cases import FEATURES, HEADS, WINDOW, Case, lengths, make_inputs, offsets, select, sequence_of
from benchmarks.peers import PEERS, candidate, dense_mask, measure_memory

TOKENS = 320  # longer than the window


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "feature"), [*(("sdpa", feature) for feature in FEATURES), ("sdpa_split", "varlen")])
def test_sdpa_agrees(name: str, feature: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(feature, TOKENS, 16, dtype)
    assert PEERS[name].runs(case)
    monkeypatch.setattr(cpu, "WARM_TOKENS", TOKENS)
    assert cpu.difference(name, case, gradients=True) <= cpu.TOLERANCE[dtype]


def test_a_peer_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WARM_TOKENS", TOKENS)
    monkeypatch.setattr(peers, "WINDOW", WINDOW - 20)
    case = Case("window", TOKENS, 16, "float32")
    monkeypatch.setattr(PEERS["faops"], "prepare", lambda case: {"causal": True, "window": (WINDOW, 0)})
    assert cpu.difference("sdpa", case, gradients=False) > cpu.TOLERANCE["float32"]


@pytest.mark.compile
@pytest.mark.full
@pytest.mark.parametrize("feature", FEATURES)
def test_flex_agrees(feature: str) -> None:
    assert cpu.difference("flex", Case(feature, 1024, 64, "float32"), gradients=False) <= cpu.TOLERANCE["float32"]


def test_masks() -> None:
    position = torch.arange(TOKENS)
    i, j = position[:, None], position
    assert torch.equal(dense_mask(Case("window", TOKENS, 16, "float32")), (j <= i) & (j >= i - WINDOW))
    own = sequence_of(TOKENS)
    assert torch.equal(dense_mask(Case("varlen", TOKENS, 16, "float32")), (j <= i) & (own[:, None] == own))
    bias = dense_mask(Case("alibi", TOKENS, 16, "float32"))
    assert bias.shape == (1, HEADS, TOKENS, TOKENS)
    assert bias[0, 0, 9, 3] == -0.5 * 6 and bias[0, 7, 9, 3] == -6 / 256 and bias[0, 3, 3, 9] == -torch.inf


def test_sequences_fill_all_tokens() -> None:
    for tokens in (1024, 8192):
        assert sum(lengths(tokens)) == tokens == int(offsets(tokens)[-1]) == sequence_of(tokens).numel()


def test_inputs_are_the_same_each_time_and_normal() -> None:
    case = Case("gqa", 512, 64, "bfloat16")
    first, second = make_inputs(case), make_inputs(case)
    assert torch.equal(first.q, second.q) and torch.equal(first.dout, second.dout)
    assert first.q.shape == (1, 512, HEADS, 64) and first.k.shape == (1, 512, 1, 64)
    assert 0.95 < first.q.float().std() < 1.05


def test_phases_of_a_round() -> None:
    case = Case("window", 64, 16, "float32")
    inputs = make_inputs(case)
    assert list(candidate("faops", case, inputs, gradients=False)()) == ["build", "forward"]
    phases = candidate("sdpa", case, inputs, gradients=True)()
    assert list(phases) == ["build", "forward", "forward_grad", "backward"]
    assert all(seconds > 0 for seconds in phases.values())


def test_memory_of_a_materialised_mask_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "WARM_TOKENS", 64)
    case = Case("alibi", 1024, 16, "float32")
    threads = torch.get_num_threads()
    ours, theirs = (peers.in_child(measure_memory, name, case, True, threads) for name in ("faops", "sdpa"))
    bias = HEADS * 1024 * 1024 * 4
    assert set(ours) == {"forward", "forward_backward"}
    assert theirs["forward"] > bias > ours["forward"]


def test_select_covers_everything_once() -> None:
    cases = select(["plain", "gqa"], [2048, 1024], [64], ["float32", "bfloat16"])
    assert len(cases) == len(set(cases)) == 8
    assert [case.tokens for case in cases[:2]] == [1024, 2048]
