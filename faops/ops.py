"""The torch.library operators under the public calls, with their fake (meta) and autograd implementations.

The operators make `torch.compile(fullgraph=True)`, export, meta tensors and opcheck work. A plain eager call skips
them (:func:`attention` below): going through the operator costs 10 µs on the host and changes nothing in the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from faops import execute
from faops.inputs import AttentionInputs, BackwardInputs, DecodeInputs
from faops.layout import conform, empty_lse, empty_out

# The arguments of AttentionInputs, in order.
_ATTENTION_ARGS = (
    "Tensor q, Tensor k, Tensor v, Tensor? alibi_slopes, Tensor? bias, Tensor? mask, Tensor? sinks, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? rng, SymInt max_seqlen_q, SymInt max_seqlen_k, "
    "SymInt window_left, SymInt window_right, float scale, float softcap, float dropout_p, bool deterministic, "
    "bool need_lse, str backend, Tensor? q_descale=None, Tensor? k_descale=None, Tensor? v_descale=None"
)
_KVCACHE_ARGS = (
    "Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? k, Tensor? v, Tensor? cache_seqlens, "
    "Tensor? cache_batch_idx, Tensor? cache_leftpad, Tensor? block_table, Tensor? rotary_cos, Tensor? rotary_sin, "
    "Tensor? alibi_slopes, Tensor? bias, Tensor? mask, Tensor? sinks, SymInt window_left, SymInt window_right, "
    "float scale, float softcap, bool rotary_interleaved, SymInt num_splits, bool need_lse, str backend, "
    "Tensor? q_descale=None, Tensor? k_descale=None, Tensor? v_descale=None"
)
_SCHEMAS = (
    f"attention({_ATTENTION_ARGS}) -> (Tensor out, Tensor lse)",
    f"attention_backward(Tensor dout, Tensor? dlse, Tensor out, Tensor lse, bool bias_grad, bool sinks_grad, "
    f"{_ATTENTION_ARGS}) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dsinks)",
    f"attention_with_kvcache({_KVCACHE_ARGS}) -> (Tensor out, Tensor lse)",
)
# Tensors lead AttentionInputs; of these, q, k, v, bias and sinks get a gradient.
_TENSORS = 10
_BIAS, _SINKS = 4, 6

_library: Any = torch.library.Library("faops", "DEF")  # type: ignore[no-untyped-call]
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

attention_op: Any = torch.ops.faops.attention.default
backward_op: Any = torch.ops.faops.attention_backward.default
kvcache_op: Any = torch.ops.faops.attention_with_kvcache.default


# --- what the operators compute -------------------------------------------------------------------------------------


def _attention(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = AttentionInputs(*args)
    out, lse = execute.forward(inputs)
    return conform(out, inputs.q), _or_empty(lse, inputs.q)


def _backward(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, bias_grad: bool, sinks_grad: bool,
              *args: Any) -> tuple[Tensor, ...]:  # fmt: skip
    forward = AttentionInputs(*args)
    dq, dk, dv, dbias, dsinks = execute.backward(BackwardInputs(dout, dlse, forward, out, lse, bias_grad, sinks_grad))
    dq, dk, dv = conform(dq, forward.q), conform(dk, forward.k), conform(dv, forward.v)
    return dq, dk, dv, _or_empty(dbias, out), _or_empty(dsinks, out)


def _kvcache(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = DecodeInputs(*args)
    out, lse = execute.decode(inputs)
    return conform(out, inputs.q), _or_empty(lse, inputs.q)


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Operators return tensors; an absent one is an empty tensor."""
    return like.new_empty(0) if tensor is None else tensor


for _name, _implementation in (
    ("attention", _attention),
    ("attention_backward", _backward),
    ("attention_with_kvcache", _kvcache),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")


# --- shapes only -----------------------------------------------------------------------------------------------------


def _fake_attention(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = AttentionInputs(*args)
    lse = empty_lse(inputs.q) if inputs.need_lse else inputs.q.new_empty(0)
    return empty_out(inputs.q, inputs.v.shape[-1]), lse


def _fake_backward(dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, bias_grad: bool, sinks_grad: bool,
                   *args: Any) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = AttentionInputs(*args)
    q, k, v = inputs.q, inputs.k, inputs.v
    dbias = out.new_empty(0)
    dsinks = out.new_empty(0)
    if bias_grad and inputs.bias is not None:
        dbias = inputs.bias.new_empty(inputs.bias.shape)
    if sinks_grad and inputs.sinks is not None:
        dsinks = inputs.sinks.new_empty(inputs.sinks.shape)
    return empty_out(q, q.shape[-1]), empty_out(k, k.shape[-1]), empty_out(v, v.shape[-1]), dbias, dsinks


def _fake_kvcache(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = DecodeInputs(*args)
    lse = empty_lse(inputs.q) if inputs.need_lse else inputs.q.new_empty(0)
    return empty_out(inputs.q, inputs.v_cache.shape[-1]), lse


torch.library.register_fake("faops::attention", _fake_attention, lib=_library)
torch.library.register_fake("faops::attention_backward", _fake_backward, lib=_library)
torch.library.register_fake("faops::attention_with_kvcache", _fake_kvcache, lib=_library)


# --- gradients --------------------------------------------------------------------------------------------------------


# The autograd functions take the tensors of AttentionInputs one by one and all the rest as one tuple in front: every
# argument of a Function costs the host, the tensors among them twice.


def _save(ctx: Any, numbers: tuple[Any, ...], tensors: tuple[Any, ...], out: Tensor, lse: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, out, lse)
    ctx.numbers = numbers


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
    *tensors, out, lse = ctx.saved_tensors
    if lse.numel() == 0 and out.numel() > 0:
        raise RuntimeError("faops::attention must be called with need_lse=True where a gradient is needed")
    if dout is None:
        dout = torch.zeros_like(out)
    wants_bias, wants_sinks = ctx.needs_input_grad[1 + _BIAS], ctx.needs_input_grad[1 + _SINKS]
    if is_plain(dout, tensors[0], tensors[1]):
        forward = AttentionInputs(*tensors, *ctx.numbers)
        inputs = BackwardInputs(dout, dlse, forward, out, lse, wants_bias, wants_sinks)
        dq, dk, dv, dbias, dsinks = execute.backward(inputs)
    else:
        arguments = (dout, dlse, out, lse, wants_bias, wants_sinks, *tensors, *ctx.numbers)
        dq, dk, dv, dbias, dsinks = backward_op(*arguments)
    gradients: list[Any] = [None] * (1 + _TENSORS)
    gradients[1:4] = dq, dk, dv
    gradients[1 + _BIAS] = dbias if wants_bias else None
    gradients[1 + _SINKS] = dsinks if wants_sinks else None
    return tuple(gradients)


class Attention(torch.autograd.Function):
    """Forward and backward of the operator. ``need_lse`` must be set: backward recomputes from lse."""

    @staticmethod
    def forward(ctx: Any, numbers: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, Tensor]:
        if is_plain(tensors[0], tensors[1], tensors[2]):
            inputs = AttentionInputs(*tensors, *numbers)
            out, lse = execute.forward(inputs)
            lse = _or_empty(lse, inputs.q)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                out, lse = attention_op(*tensors, *numbers)
        _save(ctx, numbers, tensors, out, lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        return _gradients(ctx, dout, dlse)


class TransformableAttention(torch.autograd.Function):
    """The same for torch.func, which wants the context set up apart (that costs an eager call 100 µs)."""

    @staticmethod
    def forward(numbers: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, Tensor]:
        return attention_op(*tensors, *numbers)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save(ctx, inputs[0], inputs[1:], *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        return _gradients(ctx, dout, dlse)


_apply: Any = Attention.apply
_apply_transformable: Any = TransformableAttention.apply


def with_gradient(*args: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) for the arguments of AttentionInputs, recorded for backward."""
    return _apply(args[_TENSORS:], *args[:_TENSORS])  # type: ignore[no-any-return]


def _autograd(*args: Any) -> tuple[Tensor, Tensor]:
    """The operator's Autograd implementation."""
    if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args[:_TENSORS]):
        return with_gradient(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return attention_op(*args)  # type: ignore[no-any-return]


_library.impl("attention", _autograd, "Autograd")


# --- entry points of the public calls ---------------------------------------------------------------------------------


def attention(*args: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse) for the arguments of AttentionInputs, by the shortest path that the call allows."""
    if torch.compiler.is_compiling():
        return attention_op(*args)  # type: ignore[no-any-return]
    if torch._C._are_functorch_transforms_active():
        return _apply_transformable(args[_TENSORS:], *args[:_TENSORS])  # type: ignore[no-any-return]
    if not is_plain(args[0], args[1], args[2]):
        return attention_op(*args)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and any(arg is not None and arg.requires_grad for arg in args[:7]):
        return with_gradient(*args)
    return execute.forward(AttentionInputs(*args))


def attention_with_kvcache(*args: Any) -> tuple[Tensor, Tensor | None]:
    """(out, lse) for the arguments of DecodeInputs. No gradient flows through it."""
    if torch.compiler.is_compiling() or not is_plain(args[0], args[1], args[2]):
        return kvcache_op(*args)  # type: ignore[no-any-return]
    return execute.decode(DecodeInputs(*args))


PLAIN_TYPES = (Tensor, torch.nn.Parameter)
dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def is_plain(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether nothing but a kernel could want to see this call: real tensors, and no mode or transform is active."""
    return (
        type(q) in PLAIN_TYPES
        and type(k) in PLAIN_TYPES
        and type(v) in PLAIN_TYPES
        and dispatch_modes() == 0
        and not q.is_meta
        and not torch._C._are_functorch_transforms_active()
    )
