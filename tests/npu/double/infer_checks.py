"""What the inference operators refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.npu.double.errors import (
    HOST_UNSUPPORTED,
    INNER_NULL_POINTER,
    INVALID_PARAMETER,
    TILING,
    refuse,
    refuse_on_host,
)
from tests.npu.double.sparse import COMPRESSED, is_compressed

if TYPE_CHECKING:
    from tests.npu.double.infer import InferCall

PROMPT, INCRE = "npu_prompt_flash_attention", "npu_incre_flash_attention"
LAYOUTS = {"BSH": 3, "BSND": 4, "BNSD": 4, "TND": 3}
# The double has these of the layouts that give out in another order; the others are left out.
OUT_LAYOUTS = (("BNSD", "BSND"),)
TWO_31 = 2**31


def check_left_out(operator: str, arguments: dict[str, Any], names: tuple[str, ...]) -> None:
    given = [name for name in names if arguments.get(name) is not None]
    given += [name for name, value in arguments.items() if name.endswith(("_mode", "_dtype")) and value
              and name != "sparse_mode"]  # fmt: skip
    if given:
        refuse(operator, INVALID_PARAMETER, f"{', '.join(given)}: not in this double")


def check_form(call: InferCall, arguments: dict[str, Any]) -> None:
    """What has to hold before sizes can be read."""
    operator, machine = call.operator, call.machine
    if machine.soc == "950" and operator in (PROMPT, INCRE):
        refuse_on_host(operator, "is no longer supported on Ascend950", HOST_UNSUPPORTED)
    if machine.soc == "310P" and operator not in (PROMPT, INCRE):
        refuse_on_host(operator, "is not supported on this product", HOST_UNSUPPORTED)
    if call.heads <= 0:
        refuse_on_host(operator, f"num_heads should be greater than 0, but the actual value is {call.heads}")
    if call.layout not in LAYOUTS or (call.layout == "TND" and operator in (PROMPT, INCRE)):
        refuse_on_host(operator, f"layout {arguments['input_layout']} is not supported")
    if call.out_layout != call.layout and (call.layout, call.out_layout) not in OUT_LAYOUTS:
        refuse(operator, INVALID_PARAMETER, f"layout {arguments['input_layout']}: not in this double")
    if call.query.dim() != LAYOUTS[call.layout]:
        refuse_on_host(operator, "query's dim should be consistent with that of Layout")
    if not call.paged and not call.query.dim() == call.key.dim() == call.value.dim():
        refuse_on_host(operator, "when Page Attention not enabled, value'dim should equal to query's dim!")
    if call.packed and (not call.ends_q or not call.ends_k):
        refuse(operator, INVALID_PARAMETER, "TND needs the lengths of query and of key")


def lengths(call: InferCall) -> dict[str, tuple[int, ...]]:
    """lengths_q and lengths_k, one a sequence, however they were given."""
    ends_q, ends_k = ([int(end) for end in ends or ()] for ends in (call.ends_q, call.ends_k))
    if call.packed:
        if len(ends_q) != len(ends_k) or len(ends_q) > 4096:
            refuse(call.operator, TILING, f"{len(ends_q)} lengths of query and {len(ends_k)} of key; at most 4096")
        # Packed keys have cumulative lengths; in pages each sequence has its own.
        of_keys = tuple(ends_k) if call.paged else _differences(call, ends_k, call.key.shape[0])
        return {"lengths_q": _differences(call, ends_q, call.query.shape[0]), "lengths_k": of_keys}
    rows, keys = call.seqlen_q, call.seqlen_k
    if call.decodes:
        ends_q = []
    return {
        "lengths_q": _each(call, ends_q, rows, "query"),
        "lengths_k": _each(call, ends_k, keys, "key"),
    }


def _differences(call: InferCall, ends: list[int], total: int) -> tuple[int, ...]:
    sizes = tuple(after - before for before, after in zip([0, *ends], ends))
    if min(sizes) < 0 or ends[-1] != total:
        refuse(call.operator, TILING, f"lengths {ends} do not add up to the {total} tokens there are")
    return sizes


def _each(call: InferCall, given: list[int], room: int, what: str) -> tuple[int, ...]:
    if not given:
        return (room,) * call.batch
    if len(given) != 1 and len(given) < call.batch:
        refuse(call.operator, TILING, f"{len(given)} lengths of {what} for a batch of {call.batch}")
    found = tuple(given[0] if len(given) == 1 else given[b] for b in range(call.batch))
    if min(found) < 0 or max(found) > room:
        refuse(call.operator, TILING, f"lengths of {what} {found} do not fit into {room}")
    return found


def check(call: InferCall) -> None:
    _check_tensors(call)
    _check_heads(call)
    if call.paged:
        _check_pages(call)
    _check_sizes(call)
    if call.operator == INCRE and call.seqlen_q != 1:
        refuse(call.operator, TILING, f"query has {call.seqlen_q} rows; this operator takes one")
    _check_inner_precise(call)
    _check_shift(call)
    _check_mask(call)
    if call.sink is not None:
        _check_sink(call)
    if call.machine.soc == "310P":
        _check_310p(call)


def _check_tensors(call: InferCall) -> None:
    operator = call.operator
    allowed = (torch.float16,) if call.machine.soc == "310P" else (torch.float16, torch.bfloat16)
    if call.query.dtype not in allowed or not call.query.dtype == call.key.dtype == call.value.dtype:
        refuse(operator, INVALID_PARAMETER, f"dtypes {call.query.dtype}, {call.key.dtype}: one of {allowed}")
    names = ("query", "key", "value", "mask", "shift", "table", "sink")
    for name in names:
        tensor = getattr(call, name)
        if isinstance(tensor, Tensor) and not tensor.is_contiguous():
            refuse(operator, INVALID_PARAMETER, f"{name} is not contiguous")
        if isinstance(tensor, Tensor) and tensor.device != call.query.device:
            refuse_on_host(operator, f"Expected all tensors to be on the same device: {name}")


def _check_heads(call: InferCall) -> None:
    operator, heads, heads_kv = call.operator, call.heads, call.heads_kv
    if heads % heads_kv or heads // heads_kv > 64 or heads > 256:
        refuse(operator, INVALID_PARAMETER, f"{heads} query heads over {heads_kv} key heads: a multiple, <= 64; <= 256")
    axis = {"BSND": 2, "BNSD": 1, "TND": 1}.get(call.layout)
    if axis is not None and call.query.shape[axis] != heads:
        refuse(operator, INVALID_PARAMETER, f"num_heads is {heads}, query has {call.query.shape[axis]}")
    if axis is not None and not call.paged and call.key.shape[axis] != heads_kv:
        refuse(operator, INVALID_PARAMETER, f"num_key_value_heads is {heads_kv}, key has {call.key.shape[axis]}")
    if call.layout == "BSH" and call.query.shape[2] % heads:
        refuse(operator, INVALID_PARAMETER, f"H {call.query.shape[2]} is not a multiple of {heads} heads")
    dim, dim_k, dim_v = _dims(call)
    if dim != dim_k or (dim_v != dim and not call.packed):
        refuse(operator, INVALID_PARAMETER, f"head dims {dim}, {dim_k}, {dim_v} differ")
    if call.packed:
        same = (64, 64) if heads == heads_kv and operator.endswith("_v2") else (128, 128)
        if (dim, dim_v) not in (same, (128, 128), (192, 128)):
            refuse(operator, TILING, f"TND with head dims {dim} and {dim_v}; 128, or 192 and 128")
    if dim % 16 or dim > 512:
        refuse(operator, TILING, f"head dim {dim}; a multiple of 16, at most 512")


def _dims(call: InferCall) -> tuple[int, int, int]:
    def dim(tensor: Tensor, heads: int, whole: bool) -> int:
        if whole and tensor.shape[-1] % heads:
            refuse(call.operator, INVALID_PARAMETER, f"H {tensor.shape[-1]} is not a multiple of {heads} heads")
        return tensor.shape[-1] // (heads if whole else 1)

    whole = call.key.dim() == 3 if call.paged else call.layout == "BSH"
    return (
        dim(call.query, call.heads, call.layout == "BSH"),
        dim(call.key, call.heads_kv, whole),
        dim(call.value, call.heads_kv, whole),
    )


def _check_sizes(call: InferCall) -> None:
    operator = call.operator
    if not call.paged and call.key.shape[:-1] != call.value.shape[:-1]:
        refuse(operator, INVALID_PARAMETER, "key and value differ in shape")
    if not call.paged and not call.packed and call.key.shape[0] != call.batch:
        refuse(operator, INVALID_PARAMETER, f"query has a batch of {call.batch}, key of {call.key.shape[0]}")
    if call.batch > 65535 or (call.decodes and call.seqlen_k > 262144):
        refuse(operator, TILING, f"batch {call.batch} <= 65535, keys {call.seqlen_k} <= 262144 for one row")
    if operator == PROMPT and call.layout in ("BSH", "BSND") and call.heads * _dims(call)[0] >= 65535:
        refuse(operator, TILING, "heads times head dim is 65535 or more")
    if call.out_layout != call.layout and call.seqlen_q == 1:
        refuse(operator, TILING, f"{call.layout}_{call.out_layout} needs more than one row")


def _check_pages(call: InferCall) -> None:
    operator, table, size = call.operator, call.table, call.block_size
    assert table is not None
    if table.dtype != torch.int32 or table.dim() != 2 or table.shape[0] != call.batch:
        refuse(operator, INVALID_PARAMETER, f"block_table is {table.dtype} {tuple(table.shape)}, not int32 (B, blocks)")
    if call.ends_k is None or len(call.ends_k) == 0:
        refuse(operator, INVALID_PARAMETER, "pages need the lengths of the keys")
    if call.key.shape != call.value.shape or call.key.dim() not in (3, 4):
        refuse(operator, INVALID_PARAMETER, f"caches {tuple(call.key.shape)} and {tuple(call.value.shape)}")
    if call.key.dim() == 4:
        _check_cache_of_heads(call)
    elif call.key.shape[2] > 65535:
        refuse(operator, TILING, f"a cache (blocks, size, H) with H {call.key.shape[2]}; at most 65535")
    if call.key.shape[1 if call.key.dim() == 3 else 2] != size:
        refuse(operator, INVALID_PARAMETER, f"block_size is {size}, the cache's shape {tuple(call.key.shape)}")
    if call.packed:
        legal = size % 16 == 0 and 16 <= size <= 1024
    elif call.decodes:
        legal = size % 16 == 0 and 16 <= size <= 512
    else:
        legal = size % 128 == 0 and 128 <= size <= 512
    if not legal:
        refuse(operator, TILING, f"block_size {size} with {call.seqlen_q} rows in layout {call.layout}")
    _check_blocks(call, table)


def _check_cache_of_heads(call: InferCall) -> None:
    allowed = ("BNSD",) if call.operator == INCRE else ("BNSD", "TND")
    if call.layout not in allowed:
        refuse(call.operator, INVALID_PARAMETER, f"a cache (blocks, heads, size, dim) with the layout {call.layout}")
    if call.packed and call.heads == call.heads_kv:
        refuse(call.operator, INVALID_PARAMETER, "TND with as many key heads takes a cache (blocks, size, H) only")
    if call.key.shape[1] != call.heads_kv:
        refuse(call.operator, INVALID_PARAMETER, f"the cache has {call.key.shape[1]} heads, not {call.heads_kv}")


def _check_blocks(call: InferCall, table: Tensor) -> None:
    blocks = [-(-length // call.block_size) for length in call.lengths_k]
    if max(blocks) > table.shape[1]:
        refuse(call.operator, TILING, f"block_table has {table.shape[1]} columns for {max(blocks)} blocks")
    if sum(blocks) > call.key.shape[0] or call.key.numel() >= TWO_31:
        refuse(call.operator, TILING, f"{sum(blocks)} blocks are needed, the cache has {call.key.shape[0]}")
    for b, count in enumerate(blocks):
        used = table[b, :count]
        if count and (int(used.min()) < 0 or int(used.max()) >= call.key.shape[0]):
            refuse(call.operator, TILING, f"block_table names a block outside of 0 to {call.key.shape[0] - 1}")


def _check_inner_precise(call: InferCall) -> None:
    if call.packed:
        allowed: tuple[int, ...] = (0, 1) if call.query.dtype == torch.float16 else (0,)
    else:
        allowed = (0, 1) if call.decodes else (0, 1, 2, 3)
    if call.inner_precise not in allowed:
        refuse(call.operator, INVALID_PARAMETER, f"inner_precise is {call.inner_precise}; here one of {allowed}")


def _check_shift(call: InferCall) -> None:
    shift = call.shift
    if shift is None:
        return
    if shift.dtype != call.query.dtype or call.packed:
        refuse(call.operator, INVALID_PARAMETER, f"pse_shift has dtype {shift.dtype}, layout {call.layout}")
    entries, rows, keys = (call.batch, 1), call.seqlen_q, call.seqlen_k
    ok = shift.dim() == 4 and shift.shape[0] in entries and shift.shape[1] == call.heads and shift.shape[3] >= keys
    if not ok or (shift.shape[2] != 1 if call.decodes else shift.shape[2] < rows):
        refuse(call.operator, TILING, f"pse_shift has the shape {tuple(shift.shape)} for {rows} rows and {keys} keys")


def _check_mask(call: InferCall) -> None:
    mask, mode = call.mask, call.sparse_mode
    modes: tuple[int, ...] = (0, 3, 4) if call.packed else (0, 1, 2, 3, 4)
    if mode not in modes and not call.decodes:
        refuse(call.operator, INVALID_PARAMETER, f"sparse_mode is {mode}; here one of {modes}")
    if mask is None:
        if mode != 0 and not call.decodes:
            refuse(call.operator, INVALID_PARAMETER, f"sparse_mode {mode} without atten_mask")
        return
    if mask.dtype not in (torch.bool, torch.int8, torch.uint8):
        refuse(call.operator, INVALID_PARAMETER, f"atten_mask has dtype {mask.dtype}")
    if mode in (2, 3, 4) and not call.decodes:
        _check_compressed(call, mask)
    else:
        _check_full_mask(call, mask)
    if mode in (0, 4) and not call.decodes and call.before + call.after < 0:
        refuse(call.operator, TILING, f"pre_tokens {call.before} and next_tokens {call.after} leave nothing")


def _check_compressed(call: InferCall, mask: Tensor) -> None:
    square = (COMPRESSED, COMPRESSED)
    if tuple(mask.shape) not in (square, (1, *square), (1, 1, *square)):
        refuse(call.operator, TILING, f"sparse_mode {call.sparse_mode} with a mask of shape {tuple(mask.shape)}")
    if not is_compressed(mask):
        refuse(call.operator, TILING, "atten_mask is not the mask that is set above the diagonal")


def _check_full_mask(call: InferCall, mask: Tensor) -> None:
    if call.packed:
        refuse(call.operator, TILING, "TND takes no full mask")
    rows, keys = call.seqlen_q, call.seqlen_k
    leading = tuple(mask.shape[:-1])
    if call.operator == INCRE:
        shapes = {(call.batch,), (call.batch, 1), (call.batch, 1, 1)}
    elif call.decodes:
        shapes = {(call.batch,), (1, 1), (call.batch, 1, 1), (1, 1, 1)}
    else:
        heights = {rows, -(-rows // 16) * 16}
        shapes = {shape for n in heights for shape in ((n,), (1, n), (call.batch, 1, n), (1, 1, n))}
        if call.operator == PROMPT:
            shapes |= {(call.batch, n) for n in heights}
    wide = mask.shape[-1] >= keys if call.paged else mask.shape[-1] in (keys, -(-keys // 32) * 32)
    if leading not in shapes or not wide:
        refuse(call.operator, INNER_NULL_POINTER, f"atten_mask {tuple(mask.shape)} for {rows} rows and {keys} keys")


def _check_sink(call: InferCall) -> None:
    sink, value_dim = call.sink, _dims(call)[2]
    assert sink is not None
    if not call.packed or value_dim > 128:
        refuse(call.operator, INVALID_PARAMETER, f"learnable_sink with the layout {call.layout}; only TND, D <= 128")
    if sink.dtype != torch.bfloat16 or tuple(sink.shape) != (call.heads,):
        refuse(call.operator, INVALID_PARAMETER, f"learnable_sink is {sink.dtype} {tuple(sink.shape)}")


def _check_310p(call: InferCall) -> None:
    operator, unlimited = call.operator, 2147483647
    if operator == PROMPT:
        free = call.shift is None and not call.ends_q and not call.ends_k and call.heads == call.heads_kv
        if not free or call.sparse_mode != 0 or call.before != unlimited or call.after not in (0, unlimited):
            refuse(operator, INVALID_PARAMETER, "pse_shift, lengths, GQA, sparse_mode and tokens: not on this product")
        if call.batch > 128 or max(call.seqlen_q, call.seqlen_k) > 65535:
            refuse(operator, TILING, f"batch {call.batch} <= 128 and lengths <= 65535 on this product")
    elif call.shift is not None or call.batch > 256 or call.seqlen_k > 65536:
        refuse(operator, INVALID_PARAMETER, "pse_shift, a batch over 256 or over 65536 keys: not on this product")
