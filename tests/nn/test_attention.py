"""MultiheadAttention: against a plain composition, with its caches, and as a module."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import faops
from faops import reference
from faops.errors import ArgumentError
from faops.nn import KVCache, MultiheadAttention, PagedKVCache, RotaryEmbedding, alibi_slopes

E = 48
KINDS: dict[str, dict[str, Any]] = {
    "encoder": {"num_heads": 4},
    "no bias": {"num_heads": 3, "bias": False},
    "causal": {"num_heads": 4, "num_kv_heads": 2, "causal": True},
    "llama": {"num_heads": 6, "num_kv_heads": 2, "bias": False, "causal": True, "rotary": RotaryEmbedding(8)},
    "qwen": {
        "num_heads": 4, "num_kv_heads": 1, "head_dim": 10, "out_bias": False, "causal": True, "qk_norm": 1e-6,
        "rotary": RotaryEmbedding(10, base=1e6),
    },
    "mistral": {
        "num_heads": 4, "num_kv_heads": 4, "causal": True, "window": (5, 0),
        "rotary": RotaryEmbedding(4, interleaved=True),
    },
    "gemma": {"num_heads": 2, "head_dim": 20, "softcap": 2.0, "scale": 0.3, "causal": True},
    "mpt": {"num_heads": 6, "num_kv_heads": 3, "alibi": True, "causal": True},
    "local": {"num_heads": 4, "window": (3, 2)},
}  # fmt: skip
CAUSAL = [name for name, options in KINDS.items() if options.get("causal")]


def composed(module: MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The module in plain torch operations and the oracle, in the dtype of x, which has one sequence a row."""
    rows = F.linear(x, module.Wqkv.weight.to(x.dtype), _to(module.Wqkv.bias, x.dtype))
    heads, kv, dim = module.num_heads, module.num_kv_heads, module.head_dim
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in rows.split([heads * dim, kv * dim, kv * dim], -1))
    if module.q_norm is not None and module.k_norm is not None:
        q = F.rms_norm(q, (dim,), module.q_norm.weight.to(x.dtype), 1e-6)
        k = F.rms_norm(k, (dim,), module.k_norm.weight.to(x.dtype), 1e-6)
    if module.rotary is not None:
        q, k = module.rotary(q), module.rotary(k)
    out, _ = reference.attention(
        q, k, v, causal=module.causal, window=module.window, scale=module.scale, softcap=module.softcap, mask=mask,
        alibi_slopes=torch.tensor(alibi_slopes(heads)) if module.alibi else None, dtype=x.dtype,
    )  # fmt: skip
    return F.linear(out.flatten(-2), module.out_proj.weight.to(x.dtype), _to(module.out_proj.bias, x.dtype))


def near(actual: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(actual, exact.to(actual.dtype))


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def make(kind: str, **more: Any) -> MultiheadAttention:
    module = MultiheadAttention(E, **{**KINDS[kind], **more})
    for norm in (module.q_norm, module.k_norm):
        if norm is not None:
            nn.init.normal_(norm.weight, 1.0, 0.3)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_the_plain_composition(kind: str, poisoned: None) -> None:
    module, x = make(kind), torch.randn(2, random.randint(9, 40), E, requires_grad=True)
    leaves = [x, *module.parameters()]
    out, exact = module(x), composed(module, x.double())
    near(out, exact)
    weights = torch.randn_like(out)
    actual = torch.autograd.grad(out, leaves, weights)
    expected = torch.autograd.grad(exact, leaves, weights.double())
    for name, ours, theirs in zip(["x", *dict(module.named_parameters())], actual, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_those_sequences_alone(kind: str, poisoned: None) -> None:
    module, lengths = make(kind), [random.randint(1, 20), 0, random.randint(1, 20)]
    x = torch.randn(sum(lengths) + 2, E)
    cu_seqlens = torch.tensor([0, lengths[0], lengths[0], sum(lengths)], dtype=torch.int32)
    out = module(x, cu_seqlens=cu_seqlens, max_seqlen=max(lengths) + 3)
    assert out.shape == x.shape
    for part, alone in zip(out[: sum(lengths)].split(lengths), x[: sum(lengths)].split(lengths)):
        if len(alone):
            torch.testing.assert_close(part, module(alone[None])[0])


def test_tokens_behind_the_last_sequence_do_no_harm() -> None:
    """However many: they have no position that a rotary table would have to reach."""
    module, x = make("llama"), torch.randn(600, E)
    out = module(x, cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), max_seqlen=3)
    torch.testing.assert_close(out[2:5], module(x[None, 2:5])[0])


@pytest.mark.parametrize("kind", ["encoder", "llama", "mpt", "local"])
def test_a_key_padding_mask_hides_tokens(kind: str, poisoned: None) -> None:
    module, x = make(kind), torch.randn(3, 17, E)
    lengths = torch.tensor([17, 1, random.randint(2, 16)])
    mask = torch.arange(17) < lengths[:, None]
    out = module(x, key_padding_mask=mask)
    exact = composed(module, x.double(), mask[:, None, None, :])
    near(out[mask], exact[mask])
    changed = module(torch.where(mask[..., None], x, torch.randn(3, 17, E)), key_padding_mask=mask)
    torch.testing.assert_close(out[mask], changed[mask], rtol=0, atol=0)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("cached", ["dense", "paged"])
def test_decoding_token_by_token_is_the_full_forward(kind: str, cached: str, poisoned: None) -> None:
    """A prompt, a chunk, then single tokens, for sequences of different length; the module is layer 1 of two."""
    module = make(kind, layer=1, dropout=0.9)  # which no cache applies
    whole = [torch.randn(length, E) for length in (13, 9)]
    cache: Any
    if cached == "dense":
        cache, sequences = KVCache(2, 16, module.num_kv_heads, module.head_dim, layers=2), None
    else:
        cache = PagedKVCache(12, 3, module.num_kv_heads, module.head_dim, layers=2)
        sequences = [cache.allocate(), cache.allocate()]
    results: list[list[Tensor]] = [[], []]
    done = [0, 0]
    with torch.no_grad():
        for counts in ([7, 3], [3, 3], [1, 1], [1, 1], [1, 1]):
            step = cache.append(counts) if sequences is None else cache.append(sequences, counts)
            new = [x[start : start + count] for x, start, count in zip(whole, done, counts)]
            equal = counts[0] == counts[1]
            out = module(torch.stack(new) if equal else torch.cat(new), step=step)
            for index, part in enumerate(out if equal else out.split(counts)):
                results[index].append(part)
                done[index] += counts[index]
    assert cache.k[1].any() and not cache.k[0].any() and not cache.v[0].any()
    module.eval()
    for x, parts in zip(whole, results):
        torch.testing.assert_close(torch.cat(parts), module(x[None])[0])


def test_dropout_applies_in_training_only() -> None:
    module, x = make("encoder", dropout=0.5), torch.randn(2, 12, E)
    assert not torch.equal(module(x), module(x))
    torch.manual_seed(7)
    first = module(x)
    torch.manual_seed(7)
    assert torch.equal(first, module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    near(module(x), composed(module, x.double()))


# --- as a module ------------------------------------------------------------------------------------------------------


def compiled_agrees(kind: str, backend: str, lengths: tuple[int, ...]) -> None:
    module = make(kind)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for length in lengths:
        x = torch.randn(2, length, E, requires_grad=True)
        leaves = [x, *module.parameters()]
        out, expected = compiled(x), module(x)
        torch.testing.assert_close(out, expected)
        weights = torch.randn_like(out)
        for ours, theirs in zip(*(torch.autograd.grad(result, leaves, weights) for result in (out, expected))):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_compiles_to_one_graph() -> None:
    compiled_agrees("llama", "aot_eager", (12,))


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.parametrize("kind", ["qwen", "mpt"])
def test_it_compiles_to_machine_code(kind: str) -> None:
    compiled_agrees(kind, "inductor", (12, 17))


def test_copies_and_state_dicts() -> None:
    module, x = make("qwen"), torch.randn(1, 9, E)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert sorted(module.state_dict()) == [
        "Wqkv.bias", "Wqkv.weight", "k_norm.weight", "out_proj.weight", "q_norm.weight",
    ]  # fmt: skip
    other = make("qwen")
    assert not torch.equal(other(x), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)


def test_it_is_made_on_the_meta_device_and_filled_later() -> None:
    module = make("llama", device="meta", dtype=torch.bfloat16)
    assert module.Wqkv.weight.is_meta and module.Wqkv.weight.dtype == torch.bfloat16
    assert module(torch.empty(2, 7, E, device="meta", dtype=torch.bfloat16)).shape == (2, 7, E)
    module.to_empty(device="cpu")
    module.reset_parameters()
    x = torch.randn(2, 7, E, dtype=torch.bfloat16)
    assert module(x).isfinite().all()
    before = module.Wqkv.weight.clone()
    module.reset_parameters()
    assert not torch.equal(before, module.Wqkv.weight)


def test_reset_forgets_what_norms_have_learnt() -> None:
    module = make("qwen")
    module.reset_parameters()
    assert module.q_norm is not None and module.k_norm is not None
    assert module.q_norm.weight.eq(1).all() and module.k_norm.weight.eq(1).all()


def test_slopes_stay_float32_when_a_model_is_cast() -> None:
    module, x = make("mpt"), torch.randn(1, 30, E)
    expected = module(x)
    torch.testing.assert_close(module.bfloat16().float()(x), expected, rtol=0.1, atol=0.05)
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
def test_alibi_slopes_fall_geometrically(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert len(set(slopes)) == heads and all(0 < slope < 1 for slope in slopes)
    n = 2 ** (heads.bit_length() - 1)
    assert slopes[n - 1] == pytest.approx(2**-8)
    assert [b / a for a, b in itertools.pairwise(slopes[:n])] == pytest.approx([2 ** (-8 / n)] * (n - 1))


def test_alibi_slopes_of_a_number_that_is_no_power_of_two() -> None:
    """Those of the paper's code for 12 heads: 8 of them 2^-1 ... 2^-8, and 4 that lie between."""
    exponents = [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]
    assert alibi_slopes(12) == pytest.approx([2**-exponent for exponent in exponents])


def test_it_prints_what_it_is() -> None:
    text = repr(make("mistral", layer=3, dropout=0.1))
    assert "48, heads=4, head_dim=12, layer=3, causal=True, window=(5, 0), dropout=0.1" in text
    assert "heads=6/2" in repr(make("llama"))


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"embed_dim": 0, "num_heads": 1}, "embed_dim: got 0"),
        ({"embed_dim": 12, "num_heads": 5}, "embed_dim: got 12, expected a multiple of num_heads, 5"),
        ({"embed_dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads: got 3, expected a number that divides"),
        ({"embed_dim": 12, "num_heads": 2, "head_dim": 0}, "head_dim: got 0"),
        ({"embed_dim": 12, "num_heads": 2, "dropout": 1.0}, "dropout_p: got 1.0"),
        ({"embed_dim": 12, "num_heads": 2, "window": (1,)}, "window: got"),
        (
            {"embed_dim": 12, "num_heads": 2, "rotary": RotaryEmbedding(8)},
            "rotary: got one of 8 dims, expected at most",
        ),
    ],
)
def test_what_it_refuses_to_be(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        MultiheadAttention(**arguments)


def test_what_a_call_refuses() -> None:
    module, causal = make("encoder"), make("causal")
    x, cu_seqlens = torch.randn(2, 3, E), torch.tensor([0, 3, 6], dtype=torch.int32)
    step = KVCache(2, 9, 2, 12).append(3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for call, words in (
        (lambda: module(x[..., 1:]), "x: got"),
        (lambda: module(x[0]), "cu_seqlens or a step"),
        (lambda: module(x, cu_seqlens=cu_seqlens, max_seqlen=3), "x: got"),
        (lambda: module(x[0], cu_seqlens=cu_seqlens), "max_seqlen: got None"),
        (lambda: module(x, max_seqlen=3), "max_seqlen: got 3"),
        (lambda: module(x, key_padding_mask=mask[:1]), "key_padding_mask: got bool tensor"),
        (lambda: module(x, key_padding_mask=mask.float()), "key_padding_mask: got float32"),
        (lambda: module(x, step=step), "step: got a step, expected None"),
        (lambda: causal(x, step=step, key_padding_mask=mask), "at most one of them"),
    ):
        with pytest.raises(ArgumentError, match=words):
            call()
    assert causal(x, step=step).shape == x.shape
    assert issubclass(ArgumentError, faops.FaopsError)
