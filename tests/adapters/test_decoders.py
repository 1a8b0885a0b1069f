"""Decoders with attn_implementation="faops" against their own eager attention: logits, generation, packing."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.models import (
    DECODERS,
    VERSION,
    close,
    close_gradients,
    llama,
    mistral,
    padding,
    pair,
    since,
    tokens,
    transformers,
)

BATCH, LENGTH, NEW = 3, 13, 8


@pytest.mark.parametrize("kind", ["none", "ones", "left", "right", "holes"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_logits(name: str, kind: str) -> None:
    eager, ours = pair(DECODERS[name]())
    ids, mask = tokens(BATCH, LENGTH), padding(kind, BATCH, LENGTH)
    close(ours(ids, attention_mask=mask).logits, eager(ids, attention_mask=mask).logits, mask)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["ones", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_generation(name: str, kind: str, cache: str) -> None:
    torch.manual_seed(1)  # with fresh weights two tokens would tie, within rounding, once in some hundred runs
    eager, ours = pair(DECODERS[name]())
    ids, mask = tokens(BATCH, LENGTH), padding(kind, BATCH, LENGTH)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "cache_implementation": cache}
    theirs = eager.generate(ids, eos_token_id=None, **options)
    assert theirs.shape == (BATCH, LENGTH + NEW)
    assert torch.equal(ours.generate(ids, eos_token_id=None, **options), theirs)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_beam_search(name: str) -> None:
    torch.manual_seed(2)
    eager, ours = pair(DECODERS[name]())
    ids, mask = tokens(BATCH, LENGTH), padding("left", BATCH, LENGTH)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "num_beams": 3}
    assert torch.equal(ours.generate(ids, **options), eager.generate(ids, **options))


@since(4, 57)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", ["ones", "left"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_prompt_read_in_chunks(name: str, kind: str, static: bool) -> None:
    """Several queries at once after a filled cache: neither a square prefill nor a single token."""
    eager, ours = pair(DECODERS[name]())
    ids, mask = tokens(BATCH, LENGTH), padding(kind, BATCH, LENGTH)
    logits = []
    for model in (eager, ours):
        cache = (
            transformers.StaticCache(config=model.config, max_cache_len=LENGTH + 5)
            if static
            else transformers.DynamicCache(config=model.config)
        )
        parts = []
        for start, stop in ((0, 4), (4, 10), (10, LENGTH)):
            out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
        logits.append(torch.cat(parts, 1))
    close(logits[1], logits[0], mask)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt2"])
@torch.no_grad()
def test_packed_sequences(name: str, calls: list) -> None:
    """Positions that restart within a row mark sequences that must not see each other."""
    if name == "gpt2" and VERSION < (4, 57):
        pytest.skip("GPT-2 does not hand on its positions there")
    eager, ours = pair(DECODERS[name]())
    ids = tokens(2, LENGTH)
    positions = torch.stack(
        [torch.cat([torch.arange(4), torch.arange(9)]), torch.cat([torch.arange(10), torch.arange(3)])]
    )
    options = {"position_ids": positions, "use_cache": False}
    close(ours(ids, **options).logits, eager(ids, **options).logits)
    assert {name for name, _ in calls} == {"attention_varlen"}


@torch.no_grad()
def test_lengths_given_by_the_caller(calls: list) -> None:
    """cu_seq_lens_q and _k, as a padding-free data collator gives them."""
    _, ours = pair(llama())
    ids = tokens(1, LENGTH)
    positions = torch.cat([torch.arange(5), torch.arange(LENGTH - 5)])[None]
    lengths = torch.tensor([0, 5, LENGTH], dtype=torch.int32)
    options = {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 8, "max_length_k": 8}
    by_lengths = ours(ids, position_ids=positions, use_cache=False, attention_mask=None, **options).logits
    apart = [ours(part).logits for part in (ids[:, :5], ids[:, 5:])]
    close(by_lengths, torch.cat(apart, 1))
    assert {name for name, _ in calls} == {"attention_varlen", "attention"}


@pytest.mark.parametrize("boolean", [True, False], ids=["bool", "additive"])
@torch.no_grad()
def test_mask_of_the_user(boolean: bool) -> None:
    """A 4-D mask means what it says: here a prefix in which all tokens see each other."""
    eager, ours = pair(llama())
    ids = tokens(2, LENGTH)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask[:6, :6] = True
    mask = mask.expand(2, 1, -1, -1)
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = eager(ids, attention_mask=additive).logits
    close(ours(ids, attention_mask=mask if boolean else additive).logits, expected)
    with pytest.raises(AssertionError):  # the prefix does change the result
        close(ours(ids).logits, expected)


def test_dropout_is_applied_in_training() -> None:
    config = llama()
    config.attention_dropout = 0.5
    _, ours = pair(config)
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        plain = ours(ids).logits
        dropped = ours.train()(ids).logits
    assert (plain - dropped).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_gradients(name: str, kind: str) -> None:
    eager, ours = pair(DECODERS[name]())
    ids, mask = tokens(BATCH, LENGTH), padding(kind, BATCH, LENGTH)
    labels = ids.clone()
    if mask is not None:  # neither a padded token nor one that a padded row would have to predict
        labels[mask == 0] = -100
        labels[:, 1:][mask[:, :-1] == 0] = -100
    for model in (eager, ours):
        for module in model.modules():  # dropout differs by its random numbers, which is not what is tested
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()(ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
    close_gradients(ours, eager)


def test_sixteen_bits_under_autocast() -> None:
    """Rotary embeddings leave q and k in float32 beside bfloat16 values."""
    eager, ours = pair(llama())
    ids = tokens(4, LENGTH)
    with torch.no_grad():
        exact = eager(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(model(ids).logits - exact).square().mean().sqrt() for model in (ours, eager)]
    assert 0 < errors[0] <= 2 * errors[1]


def test_a_window_wider_than_the_text_is_plain_causal(calls: list) -> None:
    config = mistral()
    config.sliding_window = LENGTH
    _, ours = pair(config)
    with torch.no_grad():
        ours(tokens(1, LENGTH))
    assert len(calls) == config.num_hidden_layers
    for name, options in calls:
        assert name == "attention"
        assert options["causal"]
        assert not {"window", "mask"} & set(options)
