"""Wrong arguments: an error that names them as flash-attn's caller knows them, and is a RuntimeError as there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from faops.adapters import flash_attn
from faops.adapters.flash_attn.conventions import FlashAttnArgumentError
from faops.errors import ArgumentError
from tests.adapters.flash_attn.common import offsets

Q, KV, QKV = torch.rand(2, 6, 4, 16), torch.rand(2, 7, 2, 2, 16), torch.rand(2, 6, 3, 4, 16)


def raises(named: str) -> Any:
    return pytest.raises(FlashAttnArgumentError, match=rf"^{named}: got .*, expected ")


def test_the_error_is_what_both_sides_catch() -> None:
    assert issubclass(FlashAttnArgumentError, ArgumentError)
    assert issubclass(FlashAttnArgumentError, RuntimeError) and issubclass(FlashAttnArgumentError, ValueError)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"softmax_scale": "a"}, "softmax_scale"),
        ({"window_size": 3}, "window_size"),
        ({"window_size": (1.5, 2)}, "window_size"),
        ({"window_size": "ab"}, "window_size"),
        ({"dropout_p": 1.0}, "dropout_p"),
        ({"dropout_p": -0.1}, "dropout_p"),
        ({"causal": 1}, "causal"),
        ({"softcap": -1.0}, "softcap"),
        ({"alibi_slopes": torch.rand(3)}, "alibi_slopes"),
        ({"alibi_slopes": torch.rand(4).half()}, "alibi_slopes"),
    ],
)
@pytest.mark.parametrize("probs", [False, True])
def test_options(options: dict[str, Any], named: str, probs: bool) -> None:
    with raises(named):
        flash_attn.flash_attn_func(Q, Q, Q, return_attn_probs=probs, **options)
    packing = (offsets([5, 7]), offsets([5, 7]), 7, 7)
    tokens = Q.flatten(0, 1)
    with raises(named):
        flash_attn.flash_attn_varlen_func(tokens, tokens, tokens, *packing, return_attn_probs=probs, **options)


def test_packed_tensors_go_by_their_own_name() -> None:
    with raises("kv"):
        flash_attn.flash_attn_kvpacked_func(Q, QKV)
    with raises("kv"):
        flash_attn.flash_attn_kvpacked_func(Q, KV.half())
    with raises("kv"):
        flash_attn.flash_attn_kvpacked_func(Q, KV[..., :8])
    with raises("qkv"):
        flash_attn.flash_attn_qkvpacked_func(KV)
    with raises("qkv"):
        flash_attn.flash_attn_qkvpacked_func(QKV.int())
    with raises("qkv"):
        flash_attn.flash_attn_qkvpacked_func(None)  # type: ignore[arg-type]
    with raises("q"):
        flash_attn.flash_attn_func(Q[0], Q, Q)


def test_lengths_go_by_the_names_of_the_call() -> None:
    tokens = torch.rand(9, 3, 2, 16)
    with raises("cu_seqlens"):
        flash_attn.flash_attn_varlen_qkvpacked_func(tokens, offsets([4, 6]), 6)
    with raises("max_seqlen"):
        flash_attn.flash_attn_varlen_qkvpacked_func(tokens, offsets([4, 5]), 4)
    with raises("cu_seqlens"):
        flash_attn.flash_attn_varlen_qkvpacked_func(tokens, offsets([4, 5]).long(), 5)
    with raises("max_seqlen_k"):
        flash_attn.flash_attn_varlen_func(*tokens.unbind(1), offsets([9]), offsets([9]), 9, 5.5)  # type: ignore[arg-type]
    with raises("max_seqlen_q"):
        flash_attn.flash_attn_varlen_func(*tokens.unbind(1), offsets([9]), offsets([9]), 8, 9)


def test_packed_queries_over_pages() -> None:
    q, pool, table = torch.rand(5, 2, 16), torch.rand(4, 4, 2, 16), torch.tensor([[0, 3]], dtype=torch.int32)

    def call(**changes: Any) -> None:
        arguments: dict[str, Any] = {
            "q": q, "k": pool, "v": pool, "cu_seqlens_q": offsets([5]), "cu_seqlens_k": offsets([7]),
            "max_seqlen_q": 5, "max_seqlen_k": 7, "block_table": table,
        }  # fmt: skip
        flash_attn.flash_attn_varlen_func(**{**arguments, **changes})

    call()
    for named, wrong in {
        "q": q[None],
        "k": pool[0],
        "v": pool[:3],
        "cu_seqlens_q": offsets([5]).long(),
        "cu_seqlens_k": offsets([9]),
        "block_table": table + 1,
    }.items():
        with pytest.raises(RuntimeError, match=f"^{named}"):
            call(**{named: wrong})
    with raises("cu_seqlens_q"):
        call(max_seqlen_q=4)
    with raises("cu_seqlens_k"):
        call(cu_seqlens_k=None)
    with raises("cu_seqlens_q"):
        call(cu_seqlens_q=torch.tensor([0, 3, 2], dtype=torch.int32), block_table=table.expand(2, 2))
