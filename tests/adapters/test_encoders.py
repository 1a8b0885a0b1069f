"""Encoders, encoder-decoders and vision models with attn_implementation="faops" against their eager attention."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.models import SPREAD, VOCABULARY, close, close_gradients, padding, pair, since, tokens, transformers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@since(5, 0)
@pytest.mark.parametrize("kind", ["none", "left", "right", "holes"])
@torch.no_grad()
def test_bert(kind: str) -> None:
    eager, ours = pair(transformers.BertConfig(vocab_size=VOCABULARY, initializer_range=SPREAD, **SIZES), "AutoModel")
    ids, mask = tokens(3, 13), padding(kind, 3, 13)
    mine, theirs = (model(ids, attention_mask=mask).last_hidden_state for model in (ours, eager))
    close(mine, theirs)  # padded rows too: an encoder may average over them


@since(5, 0)
@pytest.mark.parametrize("kind", ["none", "right"])
@torch.no_grad()
def test_modernbert(kind: str) -> None:
    """A sliding window to both sides in every other layer."""
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, initializer_range=SPREAD, local_attention=8, pad_token_id=0, **SIZES
    )
    config.layer_types = ["sliding_attention", "full_attention"]
    eager, ours = pair(config, "AutoModel")
    ids, mask = tokens(3, 21), padding(kind, 3, 21)
    mine, theirs = (model(ids, attention_mask=mask).last_hidden_state for model in (ours, eager))
    close(mine, theirs, mask)


@torch.no_grad()
def test_vit() -> None:
    config = transformers.ViTConfig(image_size=16, patch_size=4, initializer_range=SPREAD, **SIZES)
    eager, ours = pair(config, "AutoModel")
    pixels = torch.randn(2, 3, 16, 16)
    close(ours(pixels).last_hidden_state, eager(pixels).last_hidden_state)


def t5() -> object:
    return transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=0, initializer_factor=1.0, dropout_rate=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("decoded", [5, 13], ids=["shorter", "as long as the source"])
@torch.no_grad()
def test_t5(kind: str, decoded: int) -> None:
    """Position bias, and cross-attention from queries to padded keys of equal or different number."""
    eager, ours = pair(t5(), "AutoModelForSeq2SeqLM")
    ids, target, mask = tokens(3, 13), tokens(3, decoded), padding(kind, 3, 13)
    options = {"attention_mask": mask, "decoder_input_ids": target}
    close(ours(ids, **options).logits, eager(ids, **options).logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_t5_generation(cache: str) -> None:
    eager, ours = pair(t5(), "AutoModelForSeq2SeqLM")
    ids, mask = tokens(3, 13), padding("right", 3, 13)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    assert torch.equal(ours.generate(ids, **options), eager.generate(ids, **options))


def test_t5_gradients_reach_the_position_bias() -> None:
    eager, ours = pair(t5(), "AutoModelForSeq2SeqLM")
    ids, mask, labels = tokens(3, 13), padding("right", 3, 13), tokens(3, 7)
    for model in (eager, ours):
        model.train()(ids, attention_mask=mask, labels=labels).loss.backward()
    biases = [name for name, _ in eager.named_parameters() if "relative_attention_bias" in name]
    assert len(biases) == 2
    close_gradients(ours, eager)
    assert all(ours.get_parameter(name).grad.abs().max() > 0 for name in biases)
