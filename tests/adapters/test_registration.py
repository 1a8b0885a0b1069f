"""Registration, and what is refused."""

from __future__ import annotations

import logging as standard_logging
import subprocess
import sys

import pytest
import torch

from faops.adapters.transformers import attention_forward, register
from faops.errors import ArgumentError, FaopsError
from tests.adapters.models import llama, pair, since, tokens


def qkv() -> list[torch.Tensor]:
    return [torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)]


def test_output_is_contiguous_with_heads_behind_rows() -> None:
    q, k, _ = qkv()
    out, weights = attention_forward(torch.nn.Module(), q, k, torch.randn(2, 2, 5, 6), None)
    assert out.shape == (2, 5, 4, 6)
    assert out.is_contiguous()
    assert weights is None


def test_causality_is_that_of_the_argument_then_of_the_module() -> None:
    tensors, module = qkv(), torch.nn.Module()
    causal = attention_forward(module, *tensors, None)[0]
    module.is_causal = False
    full = attention_forward(module, *tensors, None)[0]
    assert not torch.allclose(causal, full)
    assert torch.equal(attention_forward(module, *tensors, None, is_causal=True)[0], causal)


@pytest.mark.parametrize("name", ["head_mask", "indices", "block_indices", "sinks", "cache"])
def test_what_would_change_the_result_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: got Tensor, expected None"):
        attention_forward(torch.nn.Module(), *qkv(), None, **{name: torch.ones(1)})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 5, dtype=torch.bool), "attention_mask: got a mask of shape"),
        (torch.full((2, 1, 1, 6), 3), "attention_mask: got a mask of shape .* expected at most 5 keys"),
        (torch.full((3, 1, 1, 5), 3), "attention_mask: got a mask of shape .* a batch of 2"),
        (torch.ones(2, 1, 1, 5, dtype=torch.int64), "attention_mask: got an int64 tensor of zeros and ones"),
    ],
    ids=["2-D", "too long", "other batch", "zeros and ones"],
)
def test_a_wrong_mask_is_named(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        attention_forward(torch.nn.Module(), *qkv(), mask)


def test_asking_for_the_weights_warns(caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.get_logger("transformers").propagate = True
    try:
        with caplog.at_level(standard_logging.WARNING):
            attention_forward(torch.nn.Module(), *qkv(), None, output_attentions=True)
    finally:
        logging.get_logger("transformers").propagate = False
        logging.set_verbosity_error()
    assert "does not return attention weights" in caplog.text


@since(4, 57)
def test_another_name() -> None:
    register("faops_again")
    register("faops_again")
    _, ours = pair(llama())
    ids = tokens(1, 7)
    with torch.no_grad():
        expected = ours(ids).logits
        ours.set_attn_implementation("faops_again")
        assert torch.equal(ours(ids).logits, expected)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FaopsError, match=r"pip install 'faops\[transformers\]'"):
        register()


def test_the_adapter_imports_transformers_only_when_registered() -> None:
    code = "import sys, faops.adapters.transformers; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
