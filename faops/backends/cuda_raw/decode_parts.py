"""What goes around the attention over a KV cache: appending new keys and values, and combining the splits' results.

Both move memory and compute next to nothing, so they have no tiles to choose.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from faops.backends.cuda_raw.params import Struct
from faops.backends.cuda_raw.source import Constant, make_source
from faops.backends.cuda_raw.specialize import VECTOR_BYTES, Specialised, vector_bytes
from faops.inputs import DecodeInputs
from faops.operands import DecodeOperands, cache_strides, lse_strides, row_strides

THREADS: Final = 128  # of a block
CHUNK: Final = 8  # elements that a thread of append moves
COLUMN: Final = 4  # elements that a thread of combine adds up
PART_BYTES: Final = 16  # of a thread of combine in shared memory
TABLES: Final = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}  # what cosines and sines may be

APPEND: Final = Struct((
    ("k", "const u16*"),  # (sequence, token, KV head, element), last dim contiguous
    ("v", "const u16*"),
    ("k_cache", "u16*"),  # (page, slot, KV head, element); a dense cache's batch entries are its pages
    ("v_cache", "u16*"),
    ("cache_seqlens", "const int*"),
    ("cache_batch_idx", "const int*"),
    ("block_table", "const int*"),
    ("rotary_cos", "const void*"),  # (position, pair), contiguous
    ("rotary_sin", "const void*"),
    ("k_batch", "i64"),
    ("k_row", "i64"),
    ("k_head", "i64"),
    ("v_batch", "i64"),
    ("v_row", "i64"),
    ("v_head", "i64"),
    ("k_cache_page", "i64"),
    ("k_cache_row", "i64"),
    ("k_cache_head", "i64"),
    ("v_cache_page", "i64"),
    ("v_cache_row", "i64"),
    ("v_cache_head", "i64"),
    ("table_batch", "i64"),
    ("rows", "u32"),  # sequences times new keys times KV heads
    ("heads_kv", "int"),
    ("new_keys", "int"),  # of a sequence
    ("capacity", "int"),  # keys that a sequence has room for
    ("pages", "int"),
    ("rotary_positions", "int"),  # rows of the tables
))  # fmt: skip

COMBINE: Final = Struct((
    ("partial", "const float*"),  # the splits' results, then their logarithms
    ("out", "u16*"),  # (sequence, position, head, element), last dim contiguous
    ("lse", "float*"),  # (sequence, head, position), last dim contiguous
    ("sinks", "const float*"),
    ("out_batch", "i64"),
    ("out_row", "i64"),
    ("out_head", "i64"),
    ("lse_batch", "i64"),
    ("lse_head", "i64"),
    ("heads_kv", "int"),
    ("rows_of_head", "int"),  # positions times query heads of a group
    ("splits", "int"),
))  # fmt: skip


def append(inputs: DecodeInputs, operands: DecodeOperands) -> Specialised:
    """The kernel that writes ``operands.k`` and ``v`` into the caches. There is at least one new key."""
    k, v, k_cache, v_cache = operands.k, operands.v, operands.k_cache, operands.v_cache
    assert k is not None and v is not None and operands.cache_seqlens is not None
    batch, new, heads, dim = k.shape
    rows = batch * new * heads
    rows_of_block = THREADS // (-(-dim // CHUNK) + -(-v.shape[3] // CHUNK))
    constants: dict[str, Constant] = {
        "THREADS": THREADS,
        "HEAD_DIM": dim,
        "HEAD_DIM_V": v.shape[3],
        "BFLOAT16": k.dtype == torch.bfloat16,
        "KEY_BYTES": min(vector_bytes(k), vector_bytes(k_cache)),
        "VALUE_BYTES": min(vector_bytes(v), vector_bytes(v_cache)),
        "PAGE_SIZE": 0 if operands.block_table is None else k_cache.shape[1],
        "BATCH_INDEX": operands.cache_batch_idx is not None,
        **rotary_constants(operands.rotary_cos, operands.rotary_sin, inputs.rotary_interleaved),
    }
    numbers: dict[str, int | float] = {
        **row_strides("k", k, varlen=False),
        **row_strides("v", v, varlen=False),
        **cache_strides(operands),
        "rows": rows,
        "heads_kv": heads,
        "new_keys": new,
        "capacity": inputs.capacity,
        "pages": k_cache.shape[0],
        "rotary_positions": 0 if operands.rotary_cos is None else operands.rotary_cos.shape[0],
    }
    source = make_source("decode_append", constants, APPEND.header(), THREADS, "decode_append")
    return Specialised(source, -(-rows // rows_of_block), 0, bytes(APPEND.pack(numbers)), APPEND)


def combine(operands: DecodeOperands, out: Tensor, lse: Tensor | None, splits: int) -> Specialised:
    """The kernel that makes ``out`` and ``lse`` of the results of ``splits`` parts of the keys."""
    batch, seqlen_q, heads, _ = operands.q.shape
    heads_kv, dim_v = operands.v_cache.shape[2:]
    group = heads // heads_kv
    constants: dict[str, Constant] = {
        "THREADS": THREADS,
        "HEAD_DIM_V": dim_v,
        "GROUP": group,
        "BFLOAT16": out.dtype == torch.bfloat16,
        "MMA_DEPTH": 16,  # unused: it multiplies no matrices
        "SINKS": operands.sinks is not None,
        "LSE": lse is not None,
        "OUT_VECTORS": dim_v % COLUMN == 0 and vector_bytes(out) >= 2 * COLUMN,
    }
    numbers: dict[str, int | float] = {
        **row_strides("out", out, varlen=False),
        **lse_strides("lse", lse, varlen=False),
        "heads_kv": heads_kv,
        "rows_of_head": seqlen_q * group,
        "splits": splits,
    }
    source = make_source("decode_combine", constants, COMBINE.header(), THREADS, "decode_combine")
    return Specialised(
        source, batch * heads * seqlen_q, THREADS * PART_BYTES, bytes(COMBINE.pack(numbers)), COMBINE
    )  # fmt: skip


def rotary_constants(cos: Tensor | None, sin: Tensor | None, interleaved: bool) -> dict[str, Constant]:
    """What rotary.cuh is compiled for. ``cos`` and ``sin`` are contiguous and of one dtype of TABLES, or None."""
    if cos is None or sin is None or cos.numel() == 0:
        return {"ROTARY_DIM": 0, "INTERLEAVED": False, "ROTARY_TABLE": 0, "ROTARY_VECTORS": False}
    pairs = cos.shape[1]
    together = CHUNK // 2 if interleaved else CHUNK  # neighbours that a chunk of elements needs
    aligned = together * cos.element_size() % VECTOR_BYTES[0] or VECTOR_BYTES[0]
    at_start = all(table.data_ptr() % aligned == 0 for table in (cos, sin))
    return {
        "ROTARY_DIM": 2 * pairs,
        "INTERLEAVED": interleaved,
        "ROTARY_TABLE": TABLES[cos.dtype],
        "ROTARY_VECTORS": pairs % together == 0 and at_start,
    }


def rotary_tables(cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The tables in one dtype that the kernels read: as they are, or float32."""
    if cos is None or sin is None or (cos.dtype == sin.dtype and cos.dtype in TABLES):
        return cos, sin
    return cos.float(), sin.float()
