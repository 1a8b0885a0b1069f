"""The contract double's inference operators: right where they are defined, wrong or refusing where documents say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.npu import double
from tests.npu.double_calls import COMPRESSED, close, expected, laid_back, laid_out, off, random_qkv

DIM, HEADS, HEADS_KV = 32, 4, 2
SCALE = DIM**-0.5


@pytest.fixture
def installed() -> Iterator[double.Handle]:
    with double.install() as handle:
        yield handle


def half(rows: int = 9, keys: int = 13, **shape: Any) -> tuple[Tensor, Tensor, Tensor]:
    sizes = {"heads": HEADS, "heads_kv": HEADS_KV, "dim": DIM, "dim_v": DIM, "dtype": torch.float16, **shape}
    return random_qkv(rows=rows, keys=keys, **sizes)


NAMES = {
    "v1": {"heads": "num_heads", "scale": "scale", "ends_q": "actual_seq_lengths", "ends_k": "actual_seq_lengths_kv",
           "lse": "softmax_lse_flag"},
    "v2": {"heads": "num_query_heads", "scale": "softmax_scale", "ends_q": "actual_seq_qlen",
           "ends_k": "actual_seq_kvlen", "lse": "return_softmax_lse", "sink": "learnable_sink"},
    "prompt": {"heads": "num_heads", "scale": "scale_value", "ends_q": "actual_seq_lengths",
               "ends_k": "actual_seq_lengths_kv"},
    "incre": {"heads": "num_heads", "scale": "scale_value", "ends_k": "actual_seq_lengths"},
}  # fmt: skip
CALLS = {
    "v1": "npu_fused_infer_attention_score",
    "v2": "npu_fused_infer_attention_score_v2",
    "prompt": "npu_prompt_flash_attention",
    "incre": "npu_incre_flash_attention",
}


def infer(which: str, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """The operator's result; options in one spelling for all of them, where they have one."""
    given = {"heads": HEADS, "scale": SCALE, "num_key_value_heads": HEADS_KV, "input_layout": "BSND", **options}
    if NAMES[which].get("lse") and "lse" not in given:
        given["lse"] = True
    names = NAMES[which]
    return getattr(torch.ops.npu, CALLS[which])(q, k, v, **{names.get(key, key): value for key, value in given.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["BSND", "BNSD", "BSH", "BNSD_BSND"])
@pytest.mark.parametrize("which", ["v1", "v2", "prompt"])
def test_prefill(installed: double.Handle, which: str, layout: str, dtype: torch.dtype) -> None:
    q, k, v = half(dtype=dtype)
    result = infer(which, *(laid_out(t, layout.partition("_")[0]) for t in (q, k, v)), input_layout=layout)
    exact, lse = expected(q, k, v)
    out = result if which == "prompt" else result[0]
    assert out.dtype == dtype and close(laid_back(out, layout.rpartition("_")[2], HEADS), exact)
    if which != "prompt":
        assert result[1].shape == (2, HEADS, 9, 1) and close(result[1][..., 0], lse)
        assert infer(which, q, k, v, lse=False)[1].shape == (0,)


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("which", ["v1", "v2", "prompt"])
def test_modes_and_lengths(installed: double.Handle, which: str, mode: int) -> None:
    q, k, v = half()
    lengths_q, lengths_k = [9, 4], [13, 6]
    across, down = torch.arange(13)[None, :], torch.arange(9)[:, None]
    full = torch.rand(2, 1, 9, 13) < 0.5
    full[..., 0] = False
    sides = {"pre_tokens": 3 if mode == 4 else 2**31 - 1, "next_tokens": 1 if mode == 4 else 2**31 - 1}
    result = infer(which, q, k, v, ends_q=lengths_q, ends_k=lengths_k, sparse_mode=mode,
                   atten_mask=full if mode < 2 else COMPRESSED, **sides)  # fmt: skip
    out = result if which == "prompt" else result[0]
    for b, (rows, keys) in enumerate(zip(lengths_q, lengths_k)):
        bottom = (across - (down + keys - rows))[:rows, :keys]
        hidden = [full[b, 0, :rows, :keys]] * 2
        hidden += [(across > down)[:rows, :keys], bottom > 0, (bottom < -3) | (bottom > 1)]
        exact, _ = expected(q[b : b + 1, :rows], k[b : b + 1, :keys], v[b : b + 1, :keys], hidden[mode])
        assert close(out[b, :rows], exact[0])
        assert out[b, rows:].isnan().all()


@pytest.mark.parametrize("which", ["v1", "v2", "incre"])
def test_decode(installed: double.Handle, which: str) -> None:
    q, k, v = half(rows=1)
    hidden = torch.rand(2, 13) < 0.5
    hidden[:, 0] = False
    shift = torch.randn(2, HEADS, 1, 13).half()
    result = infer(which, q, k, v, ends_k=[13, 5], atten_mask=hidden, pse_shift=shift)
    out = result if which == "incre" else result[0]
    for b, keys in enumerate((13, 5)):
        exact, lse = expected(q[b : b + 1], k[b : b + 1, :keys], v[b : b + 1, :keys], hidden[b, :keys],
                              bias=shift[b : b + 1, ..., :keys])  # fmt: skip
        assert close(out[b], exact[0])
        if which != "incre":
            assert close(result[1][b, :, :, 0], lse[0])


def paged(k: Tensor, v: Tensor, size: int, by_heads: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Caches of pages in a random order, and their block table; what no key fills is NaN."""
    batch, keys = k.shape[:2]
    count = -(-keys // size)
    table = torch.randperm(batch * count + 1)[: batch * count].view(batch, count).int()
    caches = []
    for tensor in (k, v):
        cache = torch.full((batch * count + 1, size, *tensor.shape[2:]), torch.nan, dtype=tensor.dtype)
        padded = torch.full((batch, count * size, *tensor.shape[2:]), torch.nan, dtype=tensor.dtype)
        padded[:, :keys] = tensor
        cache[table.long()] = padded.unflatten(1, (count, size))
        caches.append(cache.transpose(1, 2).contiguous() if by_heads else cache.flatten(2))
    return caches[0], caches[1], table


@pytest.mark.parametrize(("rows", "size"), [(1, 16), (1, 48), (3, 128)])
@pytest.mark.parametrize("by_heads", [False, True])
@pytest.mark.parametrize("which", ["v1", "v2", "incre"])
def test_pages(installed: double.Handle, which: str, by_heads: bool, rows: int, size: int) -> None:
    if which == "incre" and rows > 1:
        rows = 1
    q, k, v = half(rows=rows, keys=150)
    keys, values, table = paged(k, v, size, by_heads)
    layout = "BNSD" if by_heads else "BSND"
    causal = {"atten_mask": COMPRESSED, "sparse_mode": 3} if rows > 1 else {}
    result = infer(which, laid_out(q, layout), keys, values, block_table=table, block_size=size, ends_k=[150, 131],
                   input_layout=layout, **causal)  # fmt: skip
    out = laid_back(result if which == "incre" else result[0], layout, HEADS)
    for b, length in enumerate((150, 131)):
        exact, _ = expected(q[b : b + 1], k[b : b + 1, :length], v[b : b + 1, :length], causal=True)
        assert close(out[b], exact[0])


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("which", ["v1", "v2"])
def test_packed(installed: double.Handle, which: str, paging: bool) -> None:
    """Lengths of packed keys are cumulative, but each sequence has its own where they lie in pages."""
    (q, _, _), (_, k, v) = half(rows=7, batch=1, dim=128, dim_v=128), half(keys=14, batch=1, dim=128, dim_v=128)
    options: dict[str, Any] = {"ends_k": [5, 14]}
    keys, values = k[0], v[0]
    if paging:
        padded = [torch.stack([torch.cat([t[0, :5], t[0, :4]]), t[0, 5:]]) for t in (k, v)]
        keys, values, table = paged(*padded, size=16, by_heads=False)
        options = {"ends_k": [5, 9], "block_table": table, "block_size": 16}
    sink = torch.randn(HEADS).bfloat16() if which == "v2" else None
    if sink is not None:
        options["sink"] = sink
    out, lse = infer(which, q[0], keys, values, input_layout="TND", ends_q=[3, 7], sparse_mode=3,
                     atten_mask=COMPRESSED, scale=128**-0.5, **options)  # fmt: skip
    assert lse.shape == (7, HEADS, 1)
    for rows, cols in ((slice(0, 3), slice(0, 5)), (slice(3, 7), slice(5, 14))):
        exact, exact_lse = expected(q[:, rows], k[:, cols], v[:, cols], causal=True, sinks=sink)
        assert close(out[rows], exact[0]) and close(lse[rows, :, 0].T, exact_lse[0])


# --- wrong in silence ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_a_mask_of_one_row_is_ignored_past_512_keys(installed: double.Handle, which: str) -> None:
    q, k, v = half(rows=1, keys=600, batch=1)
    hidden = torch.zeros(1, 1, 1, 600, dtype=torch.bool)
    hidden[..., 300:] = True
    out = infer(which, q, k, v, atten_mask=hidden)[0]
    hidden[..., 512:] = False
    assert close(out, expected(q, k, v, hidden)[0])
    assert off(infer(which, q, k, v, atten_mask=hidden[0, 0])[0], out) < 1e-3


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_packed_without_a_mask_averages(installed: double.Handle, which: str) -> None:
    q, k, v = (t[0] for t in half(rows=7, keys=7, batch=1, dim=128, dim_v=128))
    out, _ = infer(which, q, k, v, input_layout="TND", ends_q=[7], ends_k=[7])
    assert close(out, v.double().mean(0).repeat_interleave(2, 0).expand(7, HEADS, 128))


def test_repaired_rows_have_an_infinite_lse(installed: double.Handle) -> None:
    q, k, v = half(keys=5)
    out, lse = infer("v1", q, k, v, atten_mask=COMPRESSED, sparse_mode=3)
    exact, right = expected(q, k, v, causal=True)
    assert close(out, exact)
    assert torch.equal(lse[..., 0] == torch.inf, right == -torch.inf)
    hidden = torch.ones(1, 9, 5, dtype=torch.bool)
    assert close(infer("v1", q, k, v, atten_mask=hidden, inner_precise=2)[0], torch.zeros_like(exact))
    assert infer("v1", q, k, v, atten_mask=hidden)[0].abs().max() > 0


def test_prompt_has_a_default_that_hides(installed: double.Handle) -> None:
    q, k, v = half(rows=9, keys=9)
    shown = torch.zeros(9, 9, dtype=torch.bool)
    out = infer("prompt", q, k, v, atten_mask=shown)  # next_tokens is 0 by default: what the mask shows right of it ...
    assert out[:, :-1].isnan().all() and not out[:, -1].isnan().any()
    assert close(infer("prompt", q, k, v), expected(q, k, v)[0])  # ... which without a mask is void


def test_one_row_makes_modes_and_lengths_of_query_void(installed: double.Handle) -> None:
    q, k, v = half(rows=1)
    out = infer("v1", q, k, v, sparse_mode=4, pre_tokens=2, ends_q=[0, 0])[0]
    assert close(out, expected(q, k, v)[0])


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ({"dtype": torch.float32}, {}, "dtypes"),
        ({"dim": 24, "dim_v": 24}, {}, "head dim 24"),
        ({"dim": 528, "dim_v": 528}, {}, "head dim 528"),
        ({"dim_v": 16}, {}, "head dims"),
        ({}, {"heads": 2}, "num_heads is 2"),
        ({}, {"num_key_value_heads": 0}, "num_key_value_heads is 4"),
        ({"heads": 130, "heads_kv": 2}, {"heads": 130}, "a multiple, <= 64"),
        ({}, {"input_layout": "BNDS"}, "not supported"),
        ({}, {"input_layout": "BSH"}, "query's dim"),
        ({}, {"sparse_mode": 5, "atten_mask": COMPRESSED}, "sparse_mode is 5"),
        ({}, {"sparse_mode": 3}, "without atten_mask"),
        ({}, {"sparse_mode": 3, "atten_mask": COMPRESSED[:9, :13].contiguous()}, "561002"),
        ({}, {"atten_mask": torch.zeros(2, 4, 9, 13).bool()}, "561103"),
        ({}, {"atten_mask": torch.zeros(9, 14).bool()}, "561103"),
        ({}, {"pse_shift": torch.zeros(2, 4, 9, 13)}, "pse_shift has dtype"),
        ({}, {"pse_shift": torch.zeros(2, 1, 9, 13).half()}, "pse_shift has the shape"),
        ({}, {"inner_precise": 4}, "inner_precise"),
        ({"rows": 1}, {"inner_precise": 2}, "inner_precise"),
        ({}, {"ends_k": [13, 14]}, "do not fit"),
        ({"batch": 3}, {"ends_k": [13, 13]}, "2 lengths of key"),
    ],
)
@pytest.mark.parametrize("which", ["v1", "v2"])
def test_refused(
    installed: double.Handle, which: str, shape: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RuntimeError, match=words):
        infer(which, *half(**shape), **options)


def test_refused_strides(installed: double.Handle) -> None:
    q, k, v = half()
    with pytest.raises(RuntimeError, match="key is not contiguous"):
        infer("v1", q, k.transpose(1, 2).contiguous().transpose(1, 2), v)


@pytest.mark.parametrize(
    ("rows", "size", "changes", "words"),
    [
        (3, 16, {}, "block_size 16"),
        (1, 24, {}, "block_size 24"),
        (1, 528, {}, "block_size 528"),
        (1, 16, {"block_size": 32}, "block_size is 32"),
        (1, 16, {"ends_k": None}, "need the lengths"),
        (1, 16, {"ends_k": [60, 60]}, "do not fit"),
        (1, 16, {"block_table": torch.zeros(2, 3).int() - 1}, "names a block outside"),
        (1, 16, {"block_table": torch.zeros(2, 3).long()}, "block_table is"),
        (1, 16, {"block_table": torch.zeros(1, 3).int()}, "block_table is"),
    ],
)
def test_refused_pages(installed: double.Handle, rows: int, size: int, changes: dict[str, Any], words: str) -> None:
    q, k, v = half(rows=rows, keys=40)
    keys, values, table = paged(k, v, size, by_heads=False)
    options = {"block_table": table, "block_size": size, "ends_k": [40, 33], **changes}
    with pytest.raises(RuntimeError, match=words):
        infer("v1", q, keys, values, **options)
    by_heads = paged(k, v, 16, by_heads=True)
    with pytest.raises(RuntimeError, match="with the layout BSND"):
        infer("v1", q, *by_heads[:2], block_table=by_heads[2], block_size=16, ends_k=[40, 33])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pse_shift": torch.zeros(1, 4, 7, 7).half()}, "layout TND"),
        ({"sparse_mode": 0, "atten_mask": torch.zeros(7, 7).bool()}, "no full mask"),
        ({"sparse_mode": 2, "atten_mask": COMPRESSED}, "sparse_mode is 2"),
        ({"inner_precise": 2}, "inner_precise"),
        ({"ends_k": None}, "needs the lengths"),
        ({"ends_k": [6]}, "do not add up"),
        ({"sink": torch.zeros(4)}, "learnable_sink"),
    ],
)
def test_refused_packed(installed: double.Handle, options: dict[str, Any], words: str) -> None:
    q, k, v = (t[0] for t in half(rows=7, keys=7, batch=1, dim=128, dim_v=128))
    with pytest.raises(RuntimeError, match=words):
        infer("v2", q, k, v, **{"input_layout": "TND", "ends_q": [7], "ends_k": [7], **options})
    small = (t[0] for t in half(rows=7, keys=7, batch=1, dim=96, dim_v=96))
    with pytest.raises(RuntimeError, match="TND with head dims 96"):
        infer("v2", *small, input_layout="TND", ends_q=[7], ends_k=[7])


def test_refused_by_the_machine() -> None:
    q, k, v = half(rows=1)
    for soc, which, words in (("310P", "v1", "product"), ("950", "prompt", "no longer"), ("950", "incre", "no longer"),
                              ("310P", "prompt", "GQA")):  # fmt: skip
        with double.install(soc=soc), pytest.raises(RuntimeError, match=words):
            infer(which, q, k, v)
    with double.install(soc="310P"), pytest.raises(RuntimeError, match="dtypes"):
        infer("incre", *(t.bfloat16() for t in (q, k, v)))


def test_empty_inputs(installed: double.Handle) -> None:
    assert infer("v1", *half(batch=0))[0].shape == (0, 9, HEADS, DIM)
    assert not infer("v1", *half(keys=0))[0].any()


def test_lengths_past_the_last_batch_entry(installed: double.Handle) -> None:
    q, k, v = half()
    assert torch.equal(infer("v1", q, k, v, ends_k=[5])[0], infer("v1", q, k, v, ends_k=[5, 5, 99])[0])
