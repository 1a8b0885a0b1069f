"""examples/train_gpt.py: both attentions are one function, gradients included, and a difference is found."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import nn


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("train_gpt")
    monkeypatch.setattr(module, "LAYERS", 2)
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "WINDOW", 40)
    return module


def test_both_attentions_are_the_same(example: ModuleType) -> None:
    ours, theirs = example.faops_attention(0).double(), example.TorchAttention(0).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 97, example.WIDTH, dtype=torch.float64)
    dout = torch.randn_like(x)
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        results.append((out, *torch.autograd.grad(out, (leaf, *module.parameters()), dout)))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)  # the angles are float32


def test_the_window_is_seen(example: ModuleType) -> None:
    """A token further back than the window has no influence on either."""
    x = torch.randn(1, 80, example.WIDTH)
    changed = x.clone()
    changed[:, 0] += 1
    for module in (example.faops_attention(0), example.TorchAttention(0)):
        same = torch.isclose(module(x), module(changed), atol=1e-6).all(-1)[0]
        assert same.tolist() == [False] * (example.WINDOW + 1) + [True] * (80 - example.WINDOW - 1)


def test_equal_losses(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--steps", "3"]) == 0
    assert "The model writes: 'Alice " in capsys.readouterr().out


def test_another_window_is_found(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = example.TorchAttention.forward

    def wrong(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(example, "WINDOW", 20)
            return right(self, x)

    monkeypatch.setattr(example.TorchAttention, "forward", wrong)
    assert example.main(["--steps", "4"]) == 1
    assert "Largest difference" in capsys.readouterr().out


def test_what_it_writes_needs_no_cache(example: ModuleType) -> None:
    model = example.GPT(11, example.faops_attention).double()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # so large that what came before decides what comes next
            nn.init.normal_(parameter, std=0.3)
    start = torch.randint(11, (5,)).tolist()
    with torch.no_grad():
        tokens = list(start)
        for _ in range(60):  # further than the window
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    with torch.inference_mode():
        assert example.write(model, start, 60) == tokens
