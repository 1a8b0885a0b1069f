"""The inference operators: fused_infer_attention_score and its second version, prompt_ and incre_flash_attention.

They have one kind of arguments in different spellings, so each call is put into one form (:class:`InferCall`) and
computed by the same code. Quantisation, rope inputs, shared prefixes and padding sizes are not in this double.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.npu.double import infer_checks, softmax
from tests.npu.double.infer_mask import hidden_pairs, undefined_rows
from tests.npu.double.machine import Machine, absent, fresh

Arguments = dict[str, Any]
UNLIMITED = 2147483647
# Arguments that this double takes at their defaults only.
LEFT_OUT = (
    "dequant_scale1", "quant_scale1", "dequant_scale2", "quant_scale2", "quant_offset2", "antiquant_scale",
    "antiquant_offset", "key_antiquant_scale", "key_antiquant_offset", "value_antiquant_scale",
    "value_antiquant_offset", "query_padding_size", "kv_padding_size", "key_shared_prefix", "value_shared_prefix",
    "actual_shared_prefix_len", "query_rope", "key_rope", "key_rope_antiquant_scale", "dequant_scale_query",
    "dequant_scale_key", "dequant_offset_key", "dequant_scale_value", "dequant_offset_value",
    "dequant_scale_key_rope", "quant_scale_out", "quant_offset_out", "quant_scale_p", "deq_scale1", "deq_scale2",
    "padding_mask", "out_dtype",
)  # fmt: skip


@dataclass
class InferCall:
    """One call in one spelling. Lengths are those of each sequence, not cumulative."""

    operator: str
    machine: Machine
    query: Tensor
    key: Tensor
    value: Tensor
    layout: str  # of query, and of key and value unless they are paged
    out_layout: str
    heads: int
    heads_kv: int
    scale: float
    mask: Tensor | None
    shift: Tensor | None  # position encoding, added after scaling
    sparse_mode: int
    before: int
    after: int
    inner_precise: int
    table: Tensor | None
    block_size: int
    ends_q: list[int] | None  # as given
    ends_k: list[int] | None
    sink: Tensor | None
    with_lse: bool
    lengths_q: tuple[int, ...] = ()
    lengths_k: tuple[int, ...] = ()

    @property
    def packed(self) -> bool:
        return self.layout == "TND"

    @property
    def paged(self) -> bool:
        return self.table is not None

    @property
    def batch(self) -> int:
        return len(self.ends_q or ()) if self.packed else self.query.shape[0]

    @property
    def seqlen_q(self) -> int:
        """Rows that each batch entry has room for; of packed ones the longest."""
        if self.packed:
            return max(self.lengths_q, default=0)
        return self.query.shape[2 if self.layout == "BNSD" else 1]

    @property
    def seqlen_k(self) -> int:
        """Keys that each batch entry has room for."""
        if self.table is not None:
            return self.table.shape[1] * self.block_size
        if self.packed:
            return max(self.lengths_k, default=0)
        return self.key.shape[2 if self.layout == "BNSD" else 1]

    @property
    def decodes(self) -> bool:
        """Whether there is one row a sequence, for which the sparse modes and the lengths of query are void."""
        return not self.packed and self.seqlen_q == 1 and self.operator != "npu_prompt_flash_attention"

    @property
    def repairs(self) -> bool:
        """Whether rows without a visible key are computed as such."""
        if self.decodes or self.operator == "npu_prompt_flash_attention":
            return False
        longer = any(rows > keys for rows, keys in zip(self.lengths_q, self.lengths_k))
        return bool(self.inner_precise & 2) or (self.sparse_mode == 3 and self.mask is not None and longer)


def fused(machine: Machine, operator: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """(out, lse): lse float32 (B, N, Sq, 1), or (T, N, 1) of packed sequences; empty where it is not asked for."""
    second = operator.endswith("_v2")
    layout, _, out_layout = str(arguments["input_layout"]).partition("_")
    call = _call(
        machine,
        operator,
        arguments,
        layout=layout,
        out_layout=out_layout or layout,
        heads=arguments["num_query_heads" if second else "num_heads"],
        scale=arguments["softmax_scale" if second else "scale"],
        ends_q=arguments["actual_seq_qlen" if second else "actual_seq_lengths"],
        ends_k=arguments["actual_seq_kvlen" if second else "actual_seq_lengths_kv"],
        with_lse=arguments["return_softmax_lse" if second else "softmax_lse_flag"],
    )
    return _run(call)


def prompt(machine: Machine, operator: str, arguments: Arguments) -> Tensor:
    layout, _, out_layout = str(arguments["input_layout"]).partition("_")
    call = _call(
        machine,
        operator,
        arguments,
        layout=layout,
        out_layout=out_layout or layout,
        heads=arguments["num_heads"],
        scale=arguments["scale_value"],
        ends_q=arguments["actual_seq_lengths"],
        ends_k=arguments["actual_seq_lengths_kv"],
        with_lse=False,
    )
    return _run(call)[0]


def incremental(machine: Machine, operator: str, arguments: Arguments) -> Tensor:
    """One row a sequence; its ``actual_seq_lengths`` are those of the keys."""
    call = _call(
        machine,
        operator,
        arguments,
        layout=str(arguments["input_layout"]),
        out_layout=str(arguments["input_layout"]),
        heads=arguments["num_heads"],
        scale=arguments["scale_value"],
        ends_q=None,
        ends_k=arguments["actual_seq_lengths"],
        with_lse=False,
    )
    return _run(call)[0]


def _call(machine: Machine, operator: str, arguments: Arguments, **special: Any) -> InferCall:
    infer_checks.check_left_out(operator, arguments, LEFT_OUT)
    call = InferCall(
        operator,
        machine,
        arguments["query"],
        arguments["key"],
        arguments["value"],
        heads_kv=arguments["num_key_value_heads"] or special["heads"],
        mask=arguments.get("atten_mask"),
        shift=arguments.get("pse_shift"),
        sparse_mode=arguments.get("sparse_mode", 0),
        before=arguments.get("pre_tokens", UNLIMITED),
        after=arguments.get("next_tokens", UNLIMITED),
        inner_precise=arguments.get("inner_precise", 0),
        table=arguments.get("block_table"),
        block_size=arguments.get("block_size", 0),
        sink=arguments.get("learnable_sink"),
        **special,
    )
    infer_checks.check_form(call, arguments)
    if call.query.numel() == 0:
        return call
    call = replace(call, **infer_checks.lengths(call))
    infer_checks.check(call)
    return call


def _run(call: InferCall) -> tuple[Tensor, Tensor]:
    query = call.query
    lse = absent(query, torch.float32)
    rows = query.shape[0] if call.packed else call.seqlen_q
    dim_v = _value_dim(call)
    if call.with_lse:
        shape = (rows, call.heads, 1) if call.packed else (call.batch, call.heads, rows, 1)
        lse = fresh(shape, torch.float32, query.device)
    out = fresh(_out_shape(call, dim_v), query.dtype, query.device)
    if query.numel() == 0:
        return out, lse
    if call.key.numel() == 0:
        return out.zero_(), lse
    for b in range(call.batch):
        count = call.lengths_q[b]
        if count == 0 or call.lengths_k[b] == 0:
            continue  # nothing is written: what happens is not documented
        values, row_lse = _attend(call, b)
        start = sum(call.lengths_q[:b]) if call.packed else 0
        _rows_of(out, call.out_layout, call, b, start, count, dim_v).copy_(values)
        if call.with_lse:
            part = lse[start : start + count, :, 0].T if call.packed else lse[b, :, :count, 0]
            part.copy_(row_lse)
    return out, lse


def _attend(call: InferCall, b: int) -> tuple[Tensor, Tensor]:
    """(out (N, rows, Dv), lse (N, rows)) of sequence b."""
    rows, keys = call.lengths_q[b], call.lengths_k[b]
    start = sum(call.lengths_q[:b]) if call.packed else 0
    dim = call.query.shape[-1] // (call.heads if call.layout == "BSH" else 1)
    q = _rows_of(call.query, call.layout, call, b, start, rows, dim).double()
    k, v = (keys_of(call, cache, b).double() for cache in (call.key, call.value))
    shift = None
    if call.shift is not None:
        shift = call.shift[b if call.shift.shape[0] > 1 else 0, :, :rows, :keys].double()
    sequence = softmax.Sequence(
        q,
        k,
        v,
        call.scale,
        shift,
        pse_before_scale=False,
        hidden=hidden_pairs(call, b),
        undefined=undefined_rows(call, b),
        repair=call.repairs,
        sink=None if call.sink is None else call.sink.double(),
    )
    if call.packed and call.sparse_mode == 0 and call.mask is None:
        sequence.scale = 0.0  # known: silently a plain average of the values
    out, largest, total = softmax.forward(sequence)
    row_lse = largest + total.log()
    return out, row_lse.masked_fill(sequence.dead(), torch.inf) if call.repairs else row_lse


def keys_of(call: InferCall, cache: Tensor, b: int) -> Tensor:
    """Keys or values (Nkv, keys, D) of sequence b."""
    keys = call.lengths_k[b]
    if call.table is not None:
        places = torch.arange(keys, device=cache.device)
        pages = call.table[b].long()[places // call.block_size]
        if cache.dim() == 4:
            return cache[pages, :, places % call.block_size].transpose(0, 1)
        return cache[pages, places % call.block_size].unflatten(-1, (call.heads_kv, -1)).transpose(0, 1)
    if call.packed:
        start = sum(call.lengths_k[:b])
        return cache[start : start + keys].transpose(0, 1)
    if call.layout == "BNSD":
        return cache[b, :, :keys]
    entry = cache[b, :keys]
    return (entry.unflatten(-1, (call.heads_kv, -1)) if call.layout == "BSH" else entry).transpose(0, 1)


def _value_dim(call: InferCall) -> int:
    three = call.value.dim() == 3 and (call.layout == "BSH" or call.paged)
    return call.value.shape[-1] // (call.heads_kv if three else 1)


def _out_shape(call: InferCall, dim_v: int) -> tuple[int, ...]:
    heads, rows = call.heads, call.query.shape[0] if call.packed else call.seqlen_q
    return {
        "BSH": (call.batch, rows, heads * dim_v),
        "BSND": (call.batch, rows, heads, dim_v),
        "BNSD": (call.batch, heads, rows, dim_v),
        "TND": (rows, heads, dim_v),
    }[call.out_layout]


def _rows_of(tensor: Tensor, layout: str, call: InferCall, b: int, start: int, count: int, dim: int) -> Tensor:
    """Rows of query or out of sequence b, a view of shape (N, rows, D)."""
    if layout == "TND":
        return tensor[start : start + count].transpose(0, 1)
    if layout == "BNSD":
        return tensor[b, :, :count]
    entry = tensor[b, :count]
    return (entry.unflatten(-1, (call.heads, dim)) if layout == "BSH" else entry).transpose(0, 1)
