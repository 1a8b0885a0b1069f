"""The extension's calls, in its order of arguments, are those of the Python around it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from faops.adapters.flash_attn import flash_attn_2_cuda as extension
from faops.adapters.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
from faops.adapters.flash_attn.flash_attn_interface import flash_attn_gpu
from tests.adapters.flash_attn.common import close, expected, offsets, randn, random_slopes


def test_dense() -> None:
    q, k, v = randn(2, 5, 4, 16, grad=True), randn(2, 7, 2, 16, grad=True), randn(2, 7, 2, 16, grad=True)
    slopes, given = random_slopes(4), torch.full((2, 5, 4, 16), torch.nan, dtype=torch.float64)
    numbers = (0.2, 0.3, True, 3, -1, 2.0)
    out, lse, dmask, rng = extension.fwd(q, k, v, given, slopes, *numbers, True, None)
    assert out is given
    options: dict[str, Any] = {"softmax_scale": 0.3, "causal": True, "window_size": (3, -1), "alibi_slopes": slopes}
    wanted = expected(q, k, v, keep=dmask[:, :, :5, :7] >= 0, dropout_p=0.2, softcap=2.0, **options)
    close(out, wanted[0])
    close(lse, wanted[1])
    dout, into = torch.randn_like(out), torch.full_like(k, torch.nan)
    gradients = extension.bwd(dout, q, k, v, out, lse, None, into, None, slopes, *numbers, True, None, rng)
    assert gradients[1] is into and len(gradients) == 4
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted[0], [q, k, v], dout)):
        close(ours, theirs)


def test_packed() -> None:
    q, k, v = randn(6, 4, 16, grad=True), randn(9, 2, 16, grad=True), randn(9, 2, 16, grad=True)
    slopes, starts, longest = random_slopes(2, 4), (offsets([2, 4]), offsets([6, 3])), (4, 6)
    numbers = (0.0, 0.3, False, True, -1, 1, 2.0)  # with zero_tensors in its place
    options: dict[str, Any] = {"softcap": 2.0, "alibi_slopes": slopes, "return_attn_probs": True}
    wanted = flash_attn_varlen_func(q, k, v, *starts, *longest, 0.0, 0.3, True, (-1, 1), **options)
    out, lse, _, rng = extension.varlen_fwd(
        q, k, v, None, *starts, None, None, None, slopes, *longest, *numbers, False, None
    )
    close(out, wanted[0])
    close(lse, wanted[1])
    dout = torch.randn_like(out)
    gradients = extension.varlen_bwd(
        dout, q, k, v, out, lse, None, None, None, *starts, slopes, *longest, *numbers, True, None, rng
    )
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted[0], [q, k, v], dout)):
        close(ours, theirs)


def test_cache() -> None:
    angles = torch.rand(12, 4)
    arguments: dict[str, Any] = {
        "q": randn(2, 2, 4, 16), "k": randn(2, 2, 2, 16), "v": randn(2, 2, 2, 16),
        "cache_seqlens": torch.tensor([3, 9], dtype=torch.int32), "rotary_cos": angles.cos(),
        "rotary_sin": angles.sin(), "cache_batch_idx": torch.tensor([2, 0], dtype=torch.int32),
        "cache_leftpad": torch.tensor([1, 0], dtype=torch.int32), "block_table": None, "alibi_slopes": random_slopes(4),
        "softmax_scale": 0.3, "causal": True, "softcap": 2.0, "rotary_interleaved": False, "num_splits": 0,
    }  # fmt: skip
    caches = {name: randn(3, 12, 2, 16) for name in ("k_cache", "v_cache")}
    copies = {name: cache.clone() for name, cache in caches.items()}
    out, lse = extension.fwd_kvcache(**arguments, **caches, out=None, window_size_left=4, window_size_right=-1)
    wanted = flash_attn_with_kvcache(**arguments, **copies, window_size=(4, -1), return_softmax_lse=True)
    close(out, wanted[0])
    close(lse, wanted[1])
    assert all(torch.equal(caches[name], copies[name]) for name in caches)
    order = list(inspect.signature(extension.fwd_kvcache).parameters)
    assert order[:7] == ["q", "k_cache", "v_cache", "k", "v", "cache_seqlens", "rotary_cos"] and order[12] == "out"


def test_the_slot_of_the_generator_is_empty() -> None:
    q = randn(1, 1, 2, 16)
    with pytest.raises(RuntimeError, match="generator` argument is no longer supported"):
        extension.fwd(q, q, q, None, None, 0.0, 0.25, True, -1, -1, 0.0, False, Tensor())  # type: ignore[arg-type]
    assert flash_attn_gpu is extension
