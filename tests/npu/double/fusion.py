"""npu_fusion_attention, its versions 2 and 3, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.npu.double import dropout, pse, softmax, sparse
from tests.npu.double.errors import (
    HOST_UNSUPPORTED,
    INVALID_PARAMETER,
    NULL_POINTER,
    TILING,
    refuse,
    refuse_on_host,
)
from tests.npu.double.layouts import LANES, Geometry, pack_statistics, sequence_of, unpack_statistics
from tests.npu.double.machine import Machine, absent, fresh

LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Arguments = dict[str, Any]


@dataclass
class Call:
    """One call, checked and in one spelling."""

    operator: str
    machine: Machine
    query: Tensor
    key: Tensor
    value: Tensor
    geometry: Geometry
    sparsity: sparse.Sparsity
    encoding: pse.Encoding
    scale: float
    keep_prob: float
    statistics_as_input: bool
    sink: Tensor | None

    def sequence(self, b: int, kept: Tensor | None) -> softmax.Sequence:
        """Sequence b in float64."""
        geometry = self.geometry

        def part(tensor: Tensor, heads: int, lengths: tuple[int, ...] | None) -> Tensor:
            return sequence_of(tensor, geometry.layout, heads, b, lengths).double()

        return softmax.Sequence(
            part(self.query, geometry.heads, geometry.lengths_q),
            part(self.key, geometry.heads_kv, geometry.lengths_k),
            part(self.value, geometry.heads_kv, geometry.lengths_k),
            self.scale,
            self.encoding.of_sequence(geometry, b),
            self.encoding.before_scale,
            self.sparsity.hidden(geometry, b),
            self.sparsity.undefined(geometry, b),
            self.sparsity.repairs(geometry),
            kept,
            self.keep_prob,
            None if self.sink is None else self.sink.double(),
        )

    def occupied(self) -> list[int]:
        """The sequences that have a row."""
        return [b for b in range(self.geometry.batch) if self.geometry.size_q(b)]


def forward(machine: Machine, operator: str, arguments: Arguments) -> tuple[Any, ...]:
    """(out, softmax max, softmax sum, an empty tensor, seed, offset[, size of the dropout mask])."""
    call = _checked(machine, operator, arguments)
    geometry, device = call.geometry, call.query.device
    mask = dropout.drawn(call.operator, geometry, call.keep_prob, arguments, device)
    out = fresh(geometry.out_shape(), call.query.dtype, device)
    largest, total = [], []
    for b in range(geometry.batch):
        if b not in call.occupied():
            empty = torch.empty(geometry.heads, 0, device=device)
            largest.append(empty), total.append(empty)
            continue
        values, most, sums = softmax.forward(call.sequence(b, mask.of_sequence(geometry, b)))
        sequence_of(out, geometry.layout, geometry.heads, b, geometry.lengths_q).copy_(values)
        largest.append(most), total.append(sums)
    statistics = [pack_statistics(rows, geometry, call.statistics_as_input, device) for rows in (largest, total)]
    results = (out, *statistics, absent(call.query))
    if operator.endswith("_v3"):
        return (*results, torch.tensor([mask.seed]), torch.tensor([mask.offset]))
    return (*results, mask.seed, mask.offset, mask.numels)


def backward(machine: Machine, operator: str, arguments: Arguments) -> tuple[Any, ...]:
    """(dq, dk, dv, dpse[, dsink]); version 2 also gives the gradients of its rope inputs, which are empty here.

    The gradient of pse is reserved in the documents: its memory is made, but nothing is written to it.
    """
    call = _checked(machine, operator, arguments)
    geometry = call.geometry
    saved = _saved(call, arguments)
    mask = dropout.again(geometry, call.keep_prob, arguments, call.query.device)
    dq, dk, dv = (fresh(tuple(t.shape), t.dtype, t.device) for t in (call.query, call.key, call.value))
    dsink = torch.zeros(geometry.heads, dtype=torch.float64, device=call.query.device)
    _zero_unread(dk, dv, geometry)
    for b in call.occupied():
        dout, out = (
            sequence_of(t, geometry.layout, geometry.heads, b, geometry.lengths_q).double() for t in saved.tensors
        )
        found = softmax.backward(
            call.sequence(b, mask.of_sequence(geometry, b)), dout, out, saved.largest[b], saved.total[b]
        )
        sequence_of(dq, geometry.layout, geometry.heads, b, geometry.lengths_q).copy_(found.dq)
        sequence_of(dk, geometry.layout, geometry.heads_kv, b, geometry.lengths_k).copy_(found.dk)
        sequence_of(dv, geometry.layout, geometry.heads_kv, b, geometry.lengths_k).copy_(found.dv)
        if found.dsink is not None:
            dsink += found.dsink
    pse_given = call.encoding.values
    of_pse = None if pse_given is None else fresh(tuple(pse_given.shape), pse_given.dtype, pse_given.device)
    of_sink = absent(call.key, torch.float32) if call.sink is None else dsink.float()
    if operator.endswith("_v2"):
        return dq, dk, dv, of_pse, absent(call.query), absent(call.key), of_sink
    return dq, dk, dv, of_pse, of_sink


def _zero_unread(dk: Tensor, dv: Tensor, geometry: Geometry) -> None:
    """Keys of a sequence without a row have the gradient 0."""
    for b in range(geometry.batch):
        if geometry.size_q(b) == 0:
            for gradient in (dk, dv):
                sequence_of(gradient, geometry.layout, geometry.heads_kv, b, geometry.lengths_k).zero_()


@dataclass
class Saved:
    """What forward has left for backward."""

    tensors: tuple[Tensor, Tensor]  # the gradient of out, and out
    largest: list[Tensor]
    total: list[Tensor]


def _saved(call: Call, arguments: Arguments) -> Saved:
    names = ("dy", "attention_in", "softmax_max", "softmax_sum")
    dy, out, largest, total = (arguments.get(name) for name in names)
    for name, tensor in zip(names, (dy, out, largest, total)):
        if tensor is None:
            refuse(call.operator, NULL_POINTER, f"{name} is a null pointer")
    for name, tensor in (("dy", dy), ("attention_in", out)):
        if tuple(tensor.shape) != call.geometry.out_shape() or tensor.dtype != call.query.dtype:
            refuse(call.operator, INVALID_PARAMETER, f"{name} is {_text(tensor)}, unlike the output")
    for name, tensor in (("softmax_max", largest), ("softmax_sum", total)):
        if tuple(tensor.shape) != call.geometry.statistics_shape() or tensor.dtype != torch.float32:
            expected = f"float32 {call.geometry.statistics_shape()}"
            refuse(call.operator, INVALID_PARAMETER, f"{name} is {_text(tensor)}, not {expected}")
        if not torch.equal(tensor.nan_to_num(), tensor[..., :1].expand(tensor.shape).nan_to_num()):
            refuse(call.operator, INVALID_PARAMETER, f"the {LANES} lanes of {name} differ")
    unpacked = (unpack_statistics(rows, call.geometry, call.statistics_as_input) for rows in (largest, total))
    return Saved((dy, out), *unpacked)


# --- checks ----------------------------------------------------------------------------------------------------------


def _checked(machine: Machine, operator: str, arguments: Arguments) -> Call:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    _check_machine(machine, operator, arguments)
    layout, lengths_q, lengths_k = _check_on_host(operator, arguments)
    geometry = _geometry(operator, layout, arguments["head_num"], query, key, value, lengths_q, lengths_k)
    _check_tensors(operator, geometry, query, key, value)
    _check_sink(machine, operator, arguments.get("sink"), geometry, query)
    if arguments.get("padding_mask") is not None:
        refuse(operator, INVALID_PARAMETER, "padding_mask is not supported")
    if arguments.get("query_rope") is not None or arguments.get("key_rope") is not None:
        raise NotImplementedError("query_rope and key_rope are not in this double")

    mode = arguments["sparse_mode"]
    sparsity = sparse.Sparsity(
        operator,
        mode,
        arguments.get("atten_mask"),
        _either(arguments, "pre_tockens", "pre_tokens"),
        _either(arguments, "next_tockens", "next_tokens"),
        arguments.get("prefix") or (),
        arguments["inner_precise"],
    )
    sparse.check(sparsity, geometry)
    starts = [arguments.get(name) or [] for name in ("q_start_idx", "kv_start_idx")]
    first = [start[0] if start else 0 for start in starts]
    encoding = pse.Encoding(operator, arguments.get("pse"), arguments.get("pse_type", pse.ADD_THEN_SCALE), *first)
    pse.check(encoding, geometry, query, mode, starts)
    return Call(
        operator,
        machine,
        query,
        key,
        value,
        geometry,
        sparsity,
        encoding,
        _either(arguments, "scale", "scale_value"),
        arguments["keep_prob"],
        arguments.get("softmax_layout", "") == "TND",
        arguments.get("sink"),
    )


def _either(arguments: Arguments, *names: str) -> Any:
    """The argument, however this operator spells it."""
    return next(arguments[name] for name in names if name in arguments)


def _check_machine(machine: Machine, operator: str, arguments: Arguments) -> None:
    if machine.soc == "310P":
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    if machine.soc == "950" and operator.endswith("_v3"):
        refuse_on_host(operator, "Ascend950 not support", HOST_UNSUPPORTED)
    if arguments.get("softmax_layout", "") and (machine.soc == "950" or not machine.has_cann("8.3")):
        refuse_on_host(operator, "The param softmax_layout is not supported")


def _check_sink(machine: Machine, operator: str, sink: Tensor | None, geometry: Geometry, query: Tensor) -> None:
    if sink is None:
        return
    if machine.soc == "950" or not machine.has_cann("8.5"):
        refuse_on_host(operator, "The param sink is not supported on this product or in this CANN version")
    if geometry.packed and "_grad" in operator and query.dtype == torch.float32:
        refuse(operator, INVALID_PARAMETER, "sink of packed sequences in float32: backward takes 16 bits only")
    if sink.dtype != torch.float32 or tuple(sink.shape) != (geometry.heads,) or sink.device != query.device:
        refuse(operator, INVALID_PARAMETER, f"sink is {_text(sink)}, not float32 ({geometry.heads},)")


def _text(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _check_on_host(operator: str, arguments: Arguments) -> tuple[str, list[int], list[int]]:
    """torch_npu's own checks. Returns the layout in capitals and the cumulative lengths, empty for dense calls."""
    for name in ("query", "key", "value", "dy"):
        if name in arguments and arguments[name].dim() not in (3, 4):
            refuse_on_host(operator, f"The shapes of the input {name} should be 3 or 4 dimensional")
    if arguments["head_num"] <= 0:
        refuse_on_host(operator, f"head_num must > 0, but got {arguments['head_num']}")
    if not 0 < arguments["keep_prob"] <= 1:
        refuse_on_host(operator, f"The keep_prob value must be in range of (0, 1], but got {arguments['keep_prob']}")
    layout = str(arguments["input_layout"]).upper()
    if layout not in LAYOUTS:
        refuse_on_host(operator, f"The input_layout should be {'/'.join(LAYOUTS)}, but got {layout}")
    softmax_layout = arguments.get("softmax_layout", "")
    if softmax_layout not in ("", "TND") or (softmax_layout and layout != "TND"):
        refuse_on_host(operator, "softmax_layout=TND only supported when input_layout=TND")
    lengths = [_host_lengths(operator, name, arguments) for name in ("actual_seq_qlen", "actual_seq_kvlen")]
    if layout == "TND":
        if not lengths[0] or len(lengths[0]) != len(lengths[1]):
            refuse_on_host(operator, "the size of actual_seq_qlen and actual_seq_kvlen must be the same and not empty")
        if arguments["sparse_mode"] not in (0, 1, 2, 3, 4, 6, 7, 8):
            refuse_on_host(operator, f"The sparse_mode value must be in range of [0,5) or (5,8], of TND: {arguments}")
    else:
        if lengths[0] or lengths[1]:
            refuse(operator, INVALID_PARAMETER, "actual_seq_qlen and actual_seq_kvlen belong to TND")
        if not 0 <= arguments["sparse_mode"] <= 6:
            refuse_on_host(operator, f"The sparse_mode value must be in range of [0,6], got {arguments['sparse_mode']}")
    return layout, lengths[0], lengths[1]


def _host_lengths(operator: str, name: str, arguments: Arguments) -> list[int]:
    """Cumulative lengths as ints; version 3 takes them as a tensor in host memory."""
    given = arguments.get(name)
    if given is None:
        return []
    if isinstance(given, Tensor):
        if given.device.type != "cpu" or given.dim() != 1:
            refuse_on_host(operator, f"{name}: tensor must be on CPU and 1-dimensional")
        if given.dtype not in (torch.int64, torch.int32):
            refuse_on_host(operator, f"{name} has dtype {given.dtype}; it is int64")
        return [int(value) for value in given]
    return [int(value) for value in given]


def _geometry(
    operator: str, layout: str, heads: int, query: Tensor, key: Tensor, value: Tensor, ends_q: list[int],
    ends_k: list[int],
) -> Geometry:  # fmt: skip
    expected = 3 if layout in ("BSH", "SBH", "TND") else 4
    if not query.dim() == key.dim() == value.dim() == expected:
        refuse(operator, INVALID_PARAMETER, f"{layout} needs {expected} dimensions of query, key and value")
    if layout == "TND":
        lengths_q, lengths_k = (
            _lengths(operator, ends, t.shape[0]) for ends, t in ((ends_q, query), (ends_k, key))
        )  # fmt: skip
        n, n_kv, dim, dim_v = query.shape[1], key.shape[1], query.shape[2], value.shape[2]
        if value.shape[:2] != key.shape[:2]:
            refuse(operator, INVALID_PARAMETER, "key and value differ in more than the head dim")
        _check_heads(operator, heads, n, n_kv, dim, key.shape[2], dim_v)
        if any(rows and not keys for rows, keys in zip(lengths_q, lengths_k)):
            refuse(operator, TILING, "a sequence with rows has no key; only the query's lengths may be 0")
        return Geometry(
            layout, len(ends_q), n, n_kv, query.shape[0], key.shape[0], dim, dim_v, lengths_q, lengths_k
        )  # fmt: skip
    axes = {"BSH": (0, 1), "SBH": (1, 0), "BSND": (0, 1), "BNSD": (0, 2)}[layout]
    batch, rows, keys = query.shape[axes[0]], query.shape[axes[1]], key.shape[axes[1]]
    if layout in ("BSH", "SBH"):
        if query.shape[2] % heads:
            refuse(operator, INVALID_PARAMETER, f"H {query.shape[2]} is not a multiple of head_num {heads}")
        n, dim = heads, query.shape[2] // heads
        if dim == 0 or key.shape[2] % dim or key.shape[2] == 0:
            refuse(operator, INVALID_PARAMETER, f"H {key.shape[2]} of key is not a multiple of the head dim {dim}")
        n_kv = key.shape[2] // dim
        if value.shape[2] % n_kv:
            refuse(operator, INVALID_PARAMETER, f"H {value.shape[2]} of value is not a multiple of its {n_kv} heads")
        dim_k, dim_v = dim, value.shape[2] // n_kv
    else:
        at = 2 if layout == "BSND" else 1
        n, n_kv, dim, dim_k, dim_v = query.shape[at], key.shape[at], query.shape[3], key.shape[3], value.shape[3]
        if value.shape[:3] != key.shape[:3]:
            refuse(operator, INVALID_PARAMETER, "key and value differ in more than the head dim")
    if not batch == key.shape[axes[0]] == value.shape[axes[0]] or keys != value.shape[axes[1]]:
        refuse(operator, INVALID_PARAMETER, "query, key and value differ in batch, or key and value in length")
    _check_heads(operator, heads, n, n_kv, dim, dim_k, dim_v)
    return Geometry(layout, batch, n, n_kv, rows, keys, dim, dim_v)


def _lengths(operator: str, ends: list[int], total: int) -> tuple[int, ...]:
    """Lengths of packed sequences from their cumulative ones, where trailing zeros stand for sequences left out."""
    used = list(ends)
    while len(used) > 1 and used[-1] == 0:
        used.pop()
    lengths = [after - before for before, after in zip([0, *used], used)]
    if min(lengths) < 0 or used[-1] > total:
        refuse(operator, TILING, f"lengths {ends} are not cumulative, or are more than the {total} tokens there are")
    return (*lengths, *[0] * (len(ends) - len(used)))


def _check_heads(operator: str, head_num: int, n: int, n_kv: int, dim: int, dim_k: int, dim_v: int) -> None:
    if n != head_num:
        refuse(operator, INVALID_PARAMETER, f"head_num is {head_num}, query has {n} heads")
    if n_kv == 0 or n % n_kv or not 1 <= n <= 256:
        refuse(operator, INVALID_PARAMETER, f"{n} query heads and {n_kv} key heads: 1 to 256, and a multiple")
    if dim != dim_k or dim_v > dim or not 1 <= dim <= 768 or dim_v < 1:
        refuse(
            operator, INVALID_PARAMETER, f"head dims {dim}, {dim_k}, {dim_v} of query, key, value: D = D >= D, <= 768"
        )


def _check_tensors(operator: str, geometry: Geometry, query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        refuse(operator, INVALID_PARAMETER, f"dtypes {query.dtype}, {key.dtype}, {value.dtype}: one of {DTYPES}")
    if not query.device == key.device == value.device:
        refuse_on_host(operator, "Expected all tensors to be on the same device")
    most = 1_000_000
    if not 1 <= geometry.seqlen_q <= most or not 1 <= geometry.seqlen_k <= most or geometry.batch < 1:
        refuse(operator, TILING, f"batch {geometry.batch}, {geometry.seqlen_q} rows, {geometry.seqlen_k} keys: 1 to 1M")
    if geometry.packed and geometry.batch > 1024:
        refuse(operator, TILING, f"{geometry.batch} packed sequences; at most 1024")
