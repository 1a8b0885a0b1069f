"""flash-attn's private forward and backward, as libraries with a backward of their own call them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from faops.adapters.flash_attn import flash_attn_interface as interface
from tests.adapters.flash_attn.common import close, expected, expected_varlen, offsets, randn, random_options

pytestmark = pytest.mark.usefixtures("poisoned")


def flat(options: dict[str, Any], head_dim: int = 16) -> tuple[Any, ...]:
    """Options in the order of the raw calls, from dropout_p to alibi_slopes."""
    scale = options["softmax_scale"] or head_dim**-0.5
    return (options.get("dropout_p", 0.0), scale, options["causal"], *options["window_size"], options["softcap"],
            options["alibi_slopes"])  # fmt: skip


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_dense_forward_then_backward(dropout_p: float) -> None:
    for _ in range(4):
        q, k, v = randn(2, 6, 4, 16, grad=True), randn(2, 9, 2, 16, grad=True), randn(2, 9, 2, 16, grad=True)
        options = random_options(4, 2, dropout_p=dropout_p)
        arguments = flat(options)
        out, lse, dmask, rng = interface._flash_attn_forward(q, k, v, *arguments, dropout_p > 0)
        keep = dmask[:, :, :6, :9] >= 0 if dropout_p else None
        wanted, wanted_lse = expected(q, k, v, keep=keep, **options)
        close(out, wanted)
        close(lse, wanted_lse)
        assert not out.requires_grad
        dout = torch.randn_like(out)
        written = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        delta = interface._flash_attn_backward(dout, q, k, v, out, lse, *written, *arguments, True, rng)
        for ours, theirs in zip(written, torch.autograd.grad(wanted, [q, k, v], dout)):
            close(ours, theirs)
        assert delta.shape == (2, 4, 128) and delta.dtype == torch.float32
        close(delta[:, :, :6], (dout * out).sum(-1).transpose(1, 2).float())


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_packed_forward_then_backward(dropout_p: float) -> None:
    lengths_q, lengths_k = [3, 0, 5], [4, 2, 7]
    for _ in range(4):
        q, k, v = (randn(rows, heads, 16, grad=True) for rows, heads in ((8, 4), (13, 2), (13, 2)))
        options = random_options(4, 3, dropout_p=dropout_p, window_size=(-1, -1))
        packing, arguments = (offsets(lengths_q), offsets(lengths_k), 5, 7), flat(options)
        out, lse, _, rng = interface._flash_attn_varlen_forward(q, k, v, *packing, *arguments, False)
        dout = torch.randn_like(out)
        written: list[Tensor | None] = [torch.full_like(q, torch.nan), torch.full_like(k, torch.nan), None]
        delta = interface._flash_attn_varlen_backward(
            dout, q, k, v, out, lse, *written, *packing, *arguments, False, rng
        )
        if not dropout_p:
            wanted, wanted_lse = expected_varlen(q, k, v, lengths_q, lengths_k, **options)
            close(out, wanted)
            close(lse, wanted_lse)
            gradients = torch.autograd.grad(wanted, [q, k], dout)
        else:  # the mask of the state, against the public call that draws it
            gradients = _with_mask_of(rng, q, k, v, packing, options, out, dout)
        for ours, theirs in zip(written, gradients):
            assert ours is not None
            close(ours, theirs)
        assert delta.shape == (4, 8 + 3 * 128)
        sums = (dout * out).sum(-1).T.float()
        close(delta[:, :3], sums[:, :3])
        close(delta[:, 3 + 256 : 8 + 256], sums[:, 3:])


def _with_mask_of(
    rng: Tensor, q: Tensor, k: Tensor, v: Tensor, packing: Any, options: dict[str, Any], out: Tensor, dout: Tensor
) -> tuple[Tensor, ...]:
    from faops import reference

    wanted, _ = reference.attention_varlen(
        q, k, v, *packing[:2], causal=options["causal"], scale=options["softmax_scale"], softcap=options["softcap"],
        alibi_slopes=options["alibi_slopes"], dropout_p=options["dropout_p"], rng=rng,
    )  # fmt: skip
    close(out, wanted)
    return torch.autograd.grad(wanted, [q, k], dout)


def test_backward_with_dropout_wants_the_state() -> None:
    q = randn(1, 3, 2, 16)
    arguments = (0.2, 0.25, False, -1, -1, 0.0, None)
    with pytest.raises(RuntimeError, match="rng_state: got None"):
        interface._flash_attn_backward(q, q, q, q, q, randn(1, 2, 3), None, None, None, *arguments, False)


def test_splits_are_refused_as_flash_attn_does() -> None:
    q, one = randn(1, 2, 16), offsets([1])
    with pytest.raises(RuntimeError, match="num_splits > 1 is not supported"):
        interface._flash_attn_varlen_forward(q, q, q, one, one, 1, 1, 0.0, 0.25, False, num_splits=2)


def test_the_compiled_names_are_the_same_functions() -> None:
    for name in ("forward", "backward", "varlen_forward", "varlen_backward"):
        assert getattr(interface, f"_wrapped_flash_attn_{name}") is getattr(interface, f"_flash_attn_{name}")
