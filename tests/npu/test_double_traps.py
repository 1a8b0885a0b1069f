"""The contract double is wrong in silence, or refuses, exactly where the documents of the real operators say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.npu import double
from tests.npu.double_calls import COMPRESSED, close, expected, lse_of, off, random_qkv
from tests.support import cumulative

SCALE = 16**-0.5


@pytest.fixture
def installed() -> Iterator[double.Handle]:
    with double.install() as handle:
        yield handle


def attend(q: Tensor, k: Tensor, v: Tensor, layout: str = "BSND", heads: int = 4, **options: Any) -> Any:
    return torch.ops.npu.npu_fusion_attention(q, k, v, heads, layout, **{"scale": SCALE, **options})


def dense(**options: Any) -> Any:
    return attend(*random_qkv(), **options)


def packed(lengths: list[int], layout: str = "TND", ends: list[int] | None = None, **options: Any) -> Any:
    """Self-attention of packed sequences; ``ends`` are their cumulative lengths unless given otherwise."""
    (q, _, _), (_, k, v) = random_qkv(batch=1, rows=sum(lengths)), random_qkv(batch=1, keys=sum(lengths))
    ends = cumulative(lengths)[1:].tolist() if ends is None else ends
    return q[0], k[0], v[0], attend(q[0], k[0], v[0], layout, actual_seq_qlen=ends, actual_seq_kvlen=ends, **options)


# --- wrong in silence ------------------------------------------------------------------------------------------------


def test_a_mask_of_the_other_polarity(installed: double.Handle) -> None:
    q, k, v = random_qkv()
    visible = torch.rand(9, 13) < 0.5
    visible[:, 0], visible[:, 1] = True, False
    exact, _ = expected(q, k, v, ~visible)
    assert close(attend(q, k, v, atten_mask=~visible)[0], exact)
    assert off(attend(q, k, v, atten_mask=visible)[0], exact) > 0.1


@pytest.mark.parametrize("options", [{"sparse_mode": 3}, {"sparse_mode": 4, "pre_tockens": 1, "next_tockens": 0},
                                     {"pre_tockens": 1, "next_tockens": 0}])  # fmt: skip
def test_without_a_mask_every_mode_is_void(installed: double.Handle, options: dict[str, int]) -> None:
    q, k, v = random_qkv()
    assert close(attend(q, k, v, **options)[0], expected(q, k, v)[0])
    assert off(attend(q, k, v, **options)[0], expected(q, k, v, causal=True)[0]) > 0.1


def test_softmax_statistics_of_packed_sequences(installed: double.Handle) -> None:
    lengths = [3, 5, 4]
    q, k, v, results = packed(lengths)
    naive, blocks = lse_of(results), lse_of(results).flatten()
    as_input = lse_of(packed_again(q, k, v, lengths, softmax_layout="TND"))
    assert naive.shape == as_input.shape == (12, 4)
    start, worst = 0, 0.0
    for rows in lengths:
        span = slice(start, start + rows)
        lse = expected(q[span][None], k[span][None], v[span][None])[1][0]  # (4, rows)
        assert close(as_input[span].T, lse)
        assert close(blocks[start * 4 : (start + rows) * 4].view(4, rows), lse)
        worst = max(worst, off(naive[span].T, lse))
        start += rows
    assert worst > 0.2


def packed_again(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], **options: Any) -> Any:
    ends = cumulative(lengths)[1:].tolist()
    return attend(q, k, v, "TND", actual_seq_qlen=ends, actual_seq_kvlen=ends, **options)


def test_softmax_statistics_read_by_their_shape_are_off_by_more_than_1(installed: double.Handle) -> None:
    (q, _, _), (_, k, v) = random_qkv(batch=1, rows=12), random_qkv(batch=1, keys=12)
    q = q * torch.tensor([0.1, 1.0, 4.0, 16.0])[:, None]  # heads with lse of different sizes
    naive = lse_of(packed_again(q[0], k[0], v[0], [12]))
    assert off(naive.T, expected(q, k, v)[1][0]) > 1


def test_rows_without_a_visible_key_average_the_values(installed: double.Handle) -> None:
    q, k, v = random_qkv(heads=2, heads_kv=2)
    hidden = torch.rand(2, 1, 9, 13) < 0.5
    hidden[..., 0] = False
    hidden[0, 0, 4] = True
    exact, lse = expected(q, k, v, hidden)
    results = attend(q, k, v, heads=2, atten_mask=hidden)
    assert close(results[0][0, 4], v[0].mean(0).double())
    assert close(results[0][1], exact[1])
    repaired = attend(q, k, v, heads=2, atten_mask=hidden, inner_precise=2)
    assert close(repaired[0], exact)
    assert lse_of(repaired).isfinite().all()  # and not -inf
    assert close(lse_of(repaired)[lse.isfinite()], lse[lse.isfinite()])


def test_band_does_not_repair_unasked(installed: double.Handle) -> None:
    q, k, v = random_qkv(keys=5)
    band = {"atten_mask": COMPRESSED, "sparse_mode": 4, "next_tockens": 0}
    exact, _ = expected(q, k, v, causal=True)
    assert off(attend(q, k, v, **band)[0], exact) > 0.1
    assert close(attend(q, k, v, inner_precise=2, **band)[0], exact)


def test_a_mask_that_shows_more_than_the_tokens(installed: double.Handle) -> None:
    hidden = torch.zeros(9, 13, dtype=torch.bool)
    hidden[:5, 6:] = True
    out = dense(atten_mask=hidden, next_tockens=5)[0]
    assert not out[:, :5].isnan().any() and out[:, 5:7].isnan().all() and not out[:, 8:].isnan().any()


def test_gradients_of_the_statistics_are_dropped(installed: double.Handle) -> None:
    q, k, v = (t.requires_grad_() for t in random_qkv())
    results = attend(q, k, v)
    assert results[1].requires_grad
    both = torch.autograd.grad(results[0].sum() + lse_of(results).sum(), [q, k, v], retain_graph=True)
    alone = torch.autograd.grad(results[0].sum(), [q, k, v])
    assert all(torch.equal(a, b) for a, b in zip(both, alone))
    nothing = torch.autograd.grad(lse_of(attend(q, k, v)).sum(), [q, k, v], allow_unused=True)
    assert nothing == (None, None, None)


def test_sequences_left_out_are_not_written(installed: double.Handle) -> None:
    q, k, v = (t[0] for t in random_qkv(batch=1, rows=9, keys=9))
    out = attend(q, k, v, "TND", actual_seq_qlen=[2, 5, 0], actual_seq_kvlen=[2, 5, 0])[0]
    assert not out[:5].isnan().any() and out[5:].isnan().all()


def test_a_leading_zero_is_an_empty_sequence(installed: double.Handle) -> None:
    q, k, v, results = packed([4, 5], ends=[0, 4, 9])
    assert close(results[0][:4], expected(q[:4][None], k[:4][None], v[:4][None])[0][0])
    with pytest.raises(RuntimeError, match="must be the same"):
        attend(q, k, v, "TND", actual_seq_qlen=[0, 4, 9], actual_seq_kvlen=[4, 9])


# --- refused ---------------------------------------------------------------------------------------------------------

MASK = torch.zeros(9, 13, dtype=torch.bool)
ENDS = {"actual_seq_qlen": [4, 9], "actual_seq_kvlen": [4, 9]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 8}, "head_num is 8"),
        ({"heads": 0}, "head_num must > 0"),
        ({"keep_prob": 0.0}, "keep_prob"),
        ({"keep_prob": 0.9, "seed": 3}, "seed"),
        ({"sparse_mode": 7, "atten_mask": COMPRESSED}, "sparse_mode"),
        ({"sparse_mode": 3, "atten_mask": MASK}, "561002.*2048"),
        ({"sparse_mode": 3, "atten_mask": ~COMPRESSED}, "561002.*diagonal"),
        ({"sparse_mode": 4, "atten_mask": COMPRESSED.float()}, "161002.*dtype"),
        ({"sparse_mode": 4, "atten_mask": COMPRESSED, "pre_tockens": -3, "next_tockens": 1}, "561002.*between"),
        ({"atten_mask": MASK.expand(2, 1, 9, 13)[:, :, :1]}, "561103"),
        ({"atten_mask": MASK.expand(1, 4, 9, 13)}, "561103"),
        ({"atten_mask": MASK, "next_tockens": -13}, "561002.*next_tokens"),
        ({"inner_precise": 3}, "inner_precise"),
        ({"padding_mask": MASK}, "padding_mask"),
        ({"softmax_layout": "TND"}, "softmax_layout"),
        ({"sink": torch.zeros(4, dtype=torch.float16)}, "sink"),
        ({"sink": torch.zeros(2)}, "sink"),
        ({"pse": torch.zeros(1, 1, 9, 13)}, "pse has the shape"),
        ({"pse": torch.zeros(1, 4, 1, 13)}, "pse has the shape"),
        ({"pse": torch.zeros(2, 4, 9, 13).half()}, "pse has dtype"),
        (ENDS, "belong to TND"),
        ({"layout": "BNSD"}, "head_num is 4, query has 9"),
        ({"layout": "NTD"}, "input_layout should be"),
        ({"sparse_mode": 5, "atten_mask": MASK, "prefix": [5, 5]}, "561103"),
        ({"sparse_mode": 5, "atten_mask": MASK.expand(2, 1, 9, 13), "prefix": [3, 5]}, "prefix 3"),
    ],
)
def test_refused(installed: double.Handle, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        dense(**options)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"dtype": torch.float64}, "dtypes"),
        ({"dim_v": 24}, "head dims"),
        ({"dim": 770}, "head dims"),
        ({"heads": 4, "heads_kv": 3}, "a multiple"),
        ({"rows": 0}, "0 rows"),
        ({"keys": 0}, "0 keys"),
        ({"batch": 0}, "batch 0"),
    ],
)
def test_refused_sizes(installed: double.Handle, shapes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        attend(*random_qkv(**shapes))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ends": [5, 4]}, "not cumulative"),
        ({"ends": [4, 10]}, "more than the 9 tokens"),
        ({"ends": []}, "not empty"),
        ({"atten_mask": MASK}, "561103"),
        ({"sparse_mode": 5, "atten_mask": MASK}, "sparse_mode"),
        ({"sparse_mode": 7, "atten_mask": COMPRESSED}, "sparse_mode 7"),
        ({"pse": torch.zeros(1, 4, 9, 9)}, "pse of packed"),
        ({"softmax_layout": "BSND"}, "softmax_layout"),
        ({"layout": "BSND"}, "belong to TND"),
    ],
)
def test_refused_packed(installed: double.Handle, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        packed([4, 5], **options)


def test_refused_packed_lengths(installed: double.Handle) -> None:
    q, k, v = (t[0] for t in random_qkv(batch=1, rows=9, keys=9))
    causal = {"atten_mask": COMPRESSED, "sparse_mode": 3}
    with pytest.raises(RuntimeError, match="Sq <= Skv"):
        attend(q, k, v, "TND", actual_seq_qlen=[5, 9], actual_seq_kvlen=[4, 9], **causal)
    with pytest.raises(RuntimeError, match="has no key"):
        attend(q, k, v, "TND", actual_seq_qlen=[5, 9], actual_seq_kvlen=[9, 9])
    with pytest.raises(RuntimeError, match="pse is not supported where"):
        attend(q, k, v, "TND", pse=torch.zeros(4 * 81), actual_seq_qlen=[0, 9], actual_seq_kvlen=[0, 9])


def test_refused_in_backward(installed: double.Handle) -> None:
    q, k, v = random_qkv()
    out, most, total, *_ = attend(q, k, v)
    good = {"attention_in": out, "softmax_max": most, "softmax_sum": total, "scale_value": SCALE}
    grad = torch.ops.npu.npu_fusion_attention_grad
    grad(q, k, v, out, 4, "BSND", **good)
    uneven = most.clone()
    uneven[..., 3] += 1
    for change, words in (({"attention_in": None}, "161001"), ({"softmax_max": most[..., 0]}, "softmax_max is"),
                          ({"softmax_max": uneven}, "lanes"), ({"softmax_sum": total.double()}, "softmax_sum is"),
                          ({"attention_in": out.half()}, "attention_in is")):  # fmt: skip
        with pytest.raises(RuntimeError, match=words):
            grad(q, k, v, out, 4, "BSND", **{**good, **change})
    with pytest.raises(RuntimeError, match="scale"):  # backward spells it scale_value
        grad(q, k, v, out, 4, "BSND", scale=SCALE)


@pytest.mark.parametrize(
    ("machine", "operator", "options", "words"),
    [
        ({"cann": "8.2.RC1"}, "", {"softmax_layout": "TND"}, "softmax_layout is not supported"),
        ({"cann": "8.3.RC1"}, "", {"sink": torch.zeros(4)}, "sink is not supported"),
        ({"soc": "950"}, "", {"softmax_layout": "TND"}, "softmax_layout is not supported"),
        ({"soc": "950"}, "_v2", {"sink": torch.zeros(4)}, "sink is not supported"),
        ({"soc": "950"}, "_v3", {}, "Ascend950 not support"),
        ({"soc": "310P"}, "", {}, "not supported on this product"),
    ],
)
def test_refused_by_the_machine(
    machine: dict[str, str], operator: str, options: dict[str, Any], words: str
) -> None:  # fmt: skip
    q, k, v = (t[0] for t in random_qkv(batch=1, rows=9, keys=9))
    ends: dict[str, Any] = {"actual_seq_qlen": torch.tensor([9]) if operator == "_v3" else [9]}
    ends["actual_seq_kvlen"] = ends["actual_seq_qlen"]
    with double.install(**machine):
        call = getattr(torch.ops.npu, f"npu_fusion_attention{operator}")
        with pytest.raises(RuntimeError, match=words):
            call(q, k, v, 4, "TND", scale=SCALE, **ends, **options)
    with double.install():
        getattr(torch.ops.npu, f"npu_fusion_attention{operator}")(q, k, v, 4, "TND", scale=SCALE, **ends, **options)


def test_sinks_of_packed_sequences_have_gradients_in_16_bits_only(installed: double.Handle) -> None:
    q, k, v = (t[0].requires_grad_() for t in random_qkv(batch=1, rows=9, keys=9))
    for dtype in (torch.float16, torch.float32):
        out = attend(*(t.to(dtype) for t in (q, k, v)), "TND", sink=torch.zeros(4), actual_seq_qlen=[9],
                     actual_seq_kvlen=[9])[0]  # fmt: skip
        if dtype == torch.float16:
            torch.autograd.grad(out.sum(), q)
        else:
            with pytest.raises(RuntimeError, match="16 bits only"):
                torch.autograd.grad(out.sum(), q)
