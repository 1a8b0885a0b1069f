"""faops and what it is compared with, each as one way to compute every case.

All get the same (1, tokens, heads, dim) tensors, as a projection leaves them, and take their own views of them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import faops
from benchmarks.cases import WINDOW, Case, Inputs, alibi_slopes, lengths, make_inputs, offsets, sequence_of
from benchmarks.harness import Candidate, Phases
from benchmarks.memory import ChildError, in_child, peak_of

WARM_TOKENS = 512  # long enough that no feature disappears, short enough to cost nothing


class Peer(Protocol):
    """One implementation.

    ``prepare`` makes what a caller makes once and keeps; it is never counted. ``build`` makes the mask that a call
    needs; it is timed as a phase of its own. ``attend`` computes (1, tokens, heads, dim).
    """

    name: str
    title: str

    def runs(self, case: Case) -> bool: ...

    def prepare(self, case: Case) -> Any: ...

    def build(self, case: Case) -> Any: ...

    def attend(self, case: Case, prepared: Any, built: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Faops:
    name = "faops"
    title = "faops"

    def runs(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> dict[str, Any]:
        return options_of(case)

    def build(self, case: Case) -> None:
        return None

    def attend(self, case: Case, prepared: Any, built: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if case.kind.varlen:
            return faops.attention_varlen(q[0], k[0], v[0], **prepared)[None]  # type: ignore[no-any-return]
        return faops.attention(q, k, v, **prepared)  # type: ignore[no-any-return]


def options_of(case: Case) -> dict[str, Any]:
    """The options of faops.attention, or of attention_varlen, for a case."""
    kind = case.kind
    options: dict[str, Any] = {"causal": kind.causal}
    if kind.window:
        options["window"] = (WINDOW, 0)
    if kind.alibi:
        options["alibi_slopes"] = alibi_slopes()
    if kind.varlen:
        starts, longest = offsets(case.tokens), max(lengths(case.tokens))
        options |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "max_seqlen_q": longest, "max_seqlen_k": longest}
    return options


class Sdpa:
    """F.scaled_dot_product_attention in one call, with a mask where the feature needs one."""

    name = "sdpa"
    title = "SDPA"

    def runs(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> None:
        return None

    def build(self, case: Case) -> Tensor | None:
        return dense_mask(case) if case.kind.needs_mask else None

    def attend(self, case: Case, prepared: Any, built: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        causal = case.kind.causal and built is None
        return sdpa(q, k, v, causal, built)


class SdpaSplit:
    """One call of F.scaled_dot_product_attention a sequence, which needs no mask. For varlen only."""

    name = "sdpa_split"
    title = "SDPA, one call a sequence"

    def runs(self, case: Case) -> bool:
        return case.kind.varlen

    def prepare(self, case: Case) -> list[int]:
        return lengths(case.tokens)

    def build(self, case: Case) -> None:
        return None

    def attend(self, case: Case, prepared: Any, built: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = (torch.split(tensor, prepared, 1) for tensor in (q, k, v))
        return torch.cat([sdpa(*part, case.kind.causal) for part in zip(qs, ks, vs)], 1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
    """SDPA on (batch, tokens, heads, dim) tensors."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def dense_mask(case: Case) -> Tensor:
    """The mask that SDPA needs: boolean (tokens, tokens), or for ALiBi a bias (1, heads, tokens, tokens) in the dtype.

    With any other number of dimensions SDPA leaves its fused kernel.
    """
    position = torch.arange(case.tokens)
    distance = position[:, None] - position
    if case.kind.alibi:
        bias = distance.float().neg_().masked_fill_(distance < 0, -torch.inf).to(case.torch_dtype)
        return alibi_slopes().to(case.torch_dtype)[None, :, None, None] * bias
    visible = distance >= 0
    if case.kind.window:
        visible &= distance <= WINDOW
    if case.kind.varlen:
        sequence = sequence_of(case.tokens)
        visible &= sequence[:, None] == sequence
    return visible


class Flex:
    """torch.compile(flex_attention) with a block mask and, for ALiBi, a score_mod; both are made beforehand."""

    name = "flex"
    title = "FlexAttention"

    def runs(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> dict[str, Any]:
        from torch.nn.attention.flex_attention import create_block_mask

        options: dict[str, Any] = {"enable_gqa": True} if case.kind.heads_kv == 1 else {}
        # Plain attention gets a mask of blocks too: without one this kernel is more than twice as slow.
        mask, tokens = _mask_mod(case), case.tokens
        options["block_mask"] = create_block_mask(mask, None, None, tokens, tokens, device="cpu")
        if case.kind.alibi:
            options["score_mod"] = _alibi_score(alibi_slopes())
        return options

    def build(self, case: Case) -> None:
        return None

    def attend(self, case: Case, prepared: Any, built: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = compiled_flex()(*(tensor.transpose(1, 2) for tensor in (q, k, v)), **prepared)
        return out.transpose(1, 2)  # type: ignore[no-any-return]


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    """flex_attention compiled once for all lengths; dtype, head dim and masks make further variants.

    ``fullgraph``: what cannot be compiled must fail, and not run uncompiled, many times as slow.
    """
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _mask_mod(case: Case) -> Callable[..., Tensor]:
    if case.kind.window:
        return _in_window
    if case.kind.varlen:
        sequence = sequence_of(case.tokens)

        def same_sequence(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (sequence[i] == sequence[j]) & (i >= j)

        return same_sequence
    return _causal if case.kind.causal else _everything


def _everything(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= 0


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def _in_window(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) & (i - j <= WINDOW)


def _alibi_score(slopes: Tensor) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[h] * (i - j)

    return score_mod


PEERS: dict[str, Peer] = {peer.name: peer for peer in (Faops(), Sdpa(), SdpaSplit(), Flex())}


@functools.cache
def no_backward(name: str) -> str:
    """Why a peer has no gradients; "" where it has them. Tried in a process of its own, because a compilation that
    fails changes what later ones do."""
    try:
        in_child(_try_gradients, name)
    except ChildError as reason:
        return str(reason)
    return ""


def _try_gradients(name: str) -> None:
    results(name, Case("causal", WARM_TOKENS, 64, "float32"), gradients=True)


def results(name: str, case: Case, gradients: bool) -> tuple[Tensor, ...]:
    """(out,) of a peer, or (out, dq, dk, dv)."""
    peer, inputs = PEERS[name], make_inputs(case)
    prepared = peer.prepare(case)
    built = peer.build(case)
    if gradients:
        return _with_gradients(peer, case, prepared, built, inputs)
    with torch.no_grad():
        return (peer.attend(case, prepared, built, inputs.q, inputs.k, inputs.v),)


def _with_gradients(peer: Peer, case: Case, prepared: Any, built: Any, inputs: Inputs) -> tuple[Tensor, ...]:
    leaves = inputs.leaves()
    out = peer.attend(case, prepared, built, *leaves)
    return out, *torch.autograd.grad(out, leaves, inputs.dout)


def candidate(name: str, case: Case, inputs: Inputs, gradients: bool) -> Candidate:
    """One round of a peer.

    Phases: "build" makes the mask; "forward" computes without gradients; with ``gradients``, "forward_grad" is a
    forward that keeps what its gradients need, and "backward" makes those of q, k and v.
    """
    peer = PEERS[name]
    prepared = peer.prepare(case)
    clock = time.perf_counter

    def run() -> Phases:
        start = clock()
        built = peer.build(case)
        ready = clock()
        with torch.no_grad():
            out = peer.attend(case, prepared, built, inputs.q, inputs.k, inputs.v)
        phases = {"build": ready - start, "forward": clock() - ready}
        if gradients:
            del out  # as a caller would; the next result reuses its memory
            leaves = inputs.leaves()
            start = clock()
            out = peer.attend(case, prepared, built, *leaves)
            middle = clock()
            torch.autograd.grad(out, leaves, inputs.dout)
            phases |= {"forward_grad": middle - start, "backward": clock() - middle}
        return phases

    return run


def measure_memory(name: str, case: Case, gradients: bool, threads: int) -> dict[str, int]:
    """Peak bytes of one call of a peer, its mask included: "forward" and, with ``gradients``, "forward_backward".

    Meant to be run by :func:`benchmarks.memory.in_child`.
    """
    torch.set_num_threads(threads)
    results(name, case.with_tokens(WARM_TOKENS), gradients)  # compiles, and starts threads
    peer, inputs = PEERS[name], make_inputs(case)
    prepared = peer.prepare(case)

    def forward() -> Tensor:
        with torch.no_grad():
            return peer.attend(case, prepared, peer.build(case), inputs.q, inputs.k, inputs.v)

    found = {"forward": peak_of(forward)}
    if gradients:
        found["forward_backward"] = peak_of(lambda: _with_gradients(peer, case, prepared, peer.build(case), inputs))
    return found
