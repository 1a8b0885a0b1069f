"""The one parameter of a forward kernel: a struct, written once here for both sides of the launch."""

from __future__ import annotations

import struct
from typing import Final

# (name, C type, format of the struct module). Widest first, so that there is no padding to think about. Pointers are
# null and numbers 0 where a kernel was not specialised for what they belong to. Strides count elements.
FIELDS: Final[tuple[tuple[str, str, str], ...]] = (
    ("q", "const u16*", "Q"),  # (batch, row, head, element), last dim contiguous
    ("k", "const u16*", "Q"),
    ("v", "const u16*", "Q"),
    ("out", "u16*", "Q"),
    ("lse", "float*", "Q"),  # (batch, head, row), or (head, packed row); rows contiguous
    ("alibi_slopes", "const float*", "Q"),
    ("bias", "const void*", "Q"),
    ("mask", "const u8*", "Q"),
    ("sinks", "const float*", "Q"),
    ("cu_seqlens_q", "const int*", "Q"),
    ("cu_seqlens_k", "const int*", "Q"),
    ("rng", "const u64*", "Q"),  # seed and offset
    ("q_batch", "i64", "q"),
    ("q_row", "i64", "q"),
    ("q_head", "i64", "q"),
    ("k_batch", "i64", "q"),
    ("k_row", "i64", "q"),
    ("k_head", "i64", "q"),
    ("v_batch", "i64", "q"),
    ("v_row", "i64", "q"),
    ("v_head", "i64", "q"),
    ("out_batch", "i64", "q"),
    ("out_row", "i64", "q"),
    ("out_head", "i64", "q"),
    ("lse_batch", "i64", "q"),
    ("lse_head", "i64", "q"),
    ("bias_batch", "i64", "q"),
    ("bias_head", "i64", "q"),
    ("bias_row", "i64", "q"),
    ("bias_key", "i64", "q"),
    ("mask_batch", "i64", "q"),
    ("mask_head", "i64", "q"),
    ("mask_row", "i64", "q"),
    ("mask_key", "i64", "q"),
    ("alibi_batch", "i64", "q"),
    ("batch", "int", "i"),
    ("heads", "int", "i"),  # query heads
    ("group", "int", "i"),  # query heads that share a key/value head
    ("row_tiles", "int", "i"),  # tiles of query rows in the longest sequence
    ("seqlen_q", "int", "i"),  # dense: of every sequence
    ("seqlen_k", "int", "i"),
    ("total_q", "int", "i"),  # varlen: packed rows
    ("head_dim", "int", "i"),  # true sizes; the kernel pads
    ("head_dim_v", "int", "i"),
    ("window_left", "int", "i"),  # -1: unlimited
    ("window_right", "int", "i"),
    ("scale", "float", "f"),
    ("softcap", "float", "f"),
    ("keep_scale", "float", "f"),  # 1 / (1 - dropout_p)
    ("drop_below", "u32", "I"),  # random words below this drop their probability
)

NAMES: Final = tuple(name for name, _, _ in FIELDS)
_STRUCT: Final = struct.Struct("<" + "".join(code for _, _, code in FIELDS))
SIZE: Final = -(-_STRUCT.size // 8) * 8  # what sizeof(Params) is: the widest member rules
POINTERS: Final = tuple(name for name, kind, _ in FIELDS if kind.endswith("*"))
POINTER_OFFSETS: Final = tuple(8 * index for index in range(len(POINTERS)))  # they come first
POINTER_STRUCT: Final = struct.Struct(f"<{len(POINTERS)}Q")


def pack(values: dict[str, int | float]) -> bytearray:
    """The struct with ``values``; what is not named is 0."""
    packed = bytearray(SIZE)
    _STRUCT.pack_into(packed, 0, *(values.get(name, 0) for name in NAMES))
    return packed


def header() -> str:
    """C++ text that declares the struct."""
    members = "\n".join(f"    {kind} {name};" for name, kind, _ in FIELDS)
    size = f'static_assert(sizeof(Params) == {SIZE}, "the host packs as many bytes");'
    return f'#pragma once\n#include "ptx.cuh"\n\nstruct Params {{\n{members}\n}};\n{size}\n'
