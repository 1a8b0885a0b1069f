"""The one parameter of a kernel: a struct, written once here for both sides of the launch."""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# The format of the struct module by C type; whatever else there is points somewhere.
FORMATS: Final = {"i64": "q", "int": "i", "float": "f", "u32": "I"}
POINTER: Final = "Q"


@dataclass(frozen=True)
class Struct:
    """The fields (name, C type) of one kernel's parameters: pointers first, then numbers.

    Widest first, so that there is no padding to think about. Pointers are null and numbers 0 where a kernel was not
    specialised for what they belong to. Strides count elements.
    """

    fields: tuple[tuple[str, str], ...]

    @functools.cached_property
    def pointers(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.fields if kind.endswith("*"))

    @functools.cached_property
    def written(self) -> frozenset[str]:
        """The pointers through which the kernel writes."""
        return frozenset(name for name, kind in self.fields if kind.endswith("*") and not kind.startswith("const "))

    @functools.cached_property
    def pointer_offsets(self) -> tuple[int, ...]:
        """Where in the struct the pointers lie, in bytes."""
        return tuple(8 * index for index in range(len(self.pointers)))

    @functools.cached_property
    def size(self) -> int:
        """What sizeof(Params) is: the widest member rules."""
        return -(-self._all.size // 8) * 8

    @functools.cached_property
    def _all(self) -> struct.Struct:
        return struct.Struct("<" + "".join(FORMATS.get(kind, POINTER) for _, kind in self.fields))

    @functools.cached_property
    def _pointers(self) -> struct.Struct:
        return struct.Struct(f"<{len(self.pointers)}{POINTER}")

    def pack(self, values: dict[str, int | float]) -> bytearray:
        """The struct with ``values``; what is not named is 0."""
        packed = bytearray(self.size)
        self._all.pack_into(packed, 0, *(values.get(name, 0) for name, _ in self.fields))
        return packed

    def point(self, packed: bytearray, addresses: Sequence[int]) -> None:
        """Set every pointer of a packed struct."""
        self._pointers.pack_into(packed, 0, *addresses)

    def header(self) -> str:
        """C++ text that declares the struct."""
        members = "\n".join(f"    {kind} {name};" for name, kind in self.fields)
        size = f'static_assert(sizeof(Params) == {self.size}, "the host packs as many bytes");'
        return f'#pragma once\n#include "ptx.cuh"\n\nstruct Params {{\n{members}\n}};\n{size}\n'


FORWARD: Final = Struct((
    ("q", "const u16*"),  # (batch, row, head, element), last dim contiguous
    ("k", "const u16*"),
    ("v", "const u16*"),
    ("out", "u16*"),
    ("lse", "float*"),  # (batch, head, row), or (head, packed row); rows contiguous
    ("alibi_slopes", "const float*"),
    ("bias", "const void*"),
    ("mask", "const u8*"),
    ("sinks", "const float*"),
    ("cu_seqlens_q", "const int*"),
    ("cu_seqlens_k", "const int*"),
    ("rng", "const u64*"),  # seed and offset
    ("q_batch", "i64"),
    ("q_row", "i64"),
    ("q_head", "i64"),
    ("k_batch", "i64"),
    ("k_row", "i64"),
    ("k_head", "i64"),
    ("v_batch", "i64"),
    ("v_row", "i64"),
    ("v_head", "i64"),
    ("out_batch", "i64"),
    ("out_row", "i64"),
    ("out_head", "i64"),
    ("lse_batch", "i64"),
    ("lse_head", "i64"),
    ("bias_batch", "i64"),
    ("bias_head", "i64"),
    ("bias_row", "i64"),
    ("bias_key", "i64"),
    ("mask_batch", "i64"),
    ("mask_head", "i64"),
    ("mask_row", "i64"),
    ("mask_key", "i64"),
    ("alibi_batch", "i64"),
    ("batch", "int"),
    ("heads", "int"),  # query heads
    ("group", "int"),  # query heads that share a key/value head
    ("row_tiles", "int"),  # tiles of query rows in the longest sequence
    ("seqlen_q", "int"),  # dense: of every sequence
    ("seqlen_k", "int"),
    ("total_q", "int"),  # varlen: packed rows
    ("head_dim", "int"),  # true sizes; the kernel pads
    ("head_dim_v", "int"),
    ("window_left", "int"),  # -1: unlimited
    ("window_right", "int"),
    ("scale", "float"),
    ("softcap", "float"),
    ("keep_scale", "float"),  # 1 / (1 - dropout_p)
    ("drop_below", "u32"),  # random words below this drop their probability
))  # fmt: skip

DECODE: Final = Struct((
    ("q", "const u16*"),  # (sequence, position, head, element), last dim contiguous
    ("k_cache", "const u16*"),  # (page, slot, KV head, element); a dense cache's batch entries are its pages
    ("v_cache", "const u16*"),
    ("out", "u16*"),
    ("lse", "float*"),  # (sequence, head, position); positions contiguous
    ("partial", "float*"),  # the splits' results, then their logarithms
    ("cache_seqlens", "const int*"),  # null: the cache is full
    ("cache_batch_idx", "const int*"),
    ("cache_leftpad", "const int*"),
    ("block_table", "const int*"),
    ("rotary_cos", "const void*"),  # (position, pair), contiguous
    ("rotary_sin", "const void*"),
    ("alibi_slopes", "const float*"),
    ("bias", "const void*"),
    ("mask", "const u8*"),
    ("sinks", "const float*"),
    ("q_batch", "i64"),
    ("q_row", "i64"),
    ("q_head", "i64"),
    ("k_cache_page", "i64"),
    ("k_cache_row", "i64"),
    ("k_cache_head", "i64"),
    ("v_cache_page", "i64"),
    ("v_cache_row", "i64"),
    ("v_cache_head", "i64"),
    ("table_batch", "i64"),
    ("out_batch", "i64"),
    ("out_row", "i64"),
    ("out_head", "i64"),
    ("lse_batch", "i64"),
    ("lse_head", "i64"),
    ("partial_rows", "i64"),  # rows of all KV heads and sequences
    ("bias_batch", "i64"),
    ("bias_head", "i64"),
    ("bias_row", "i64"),
    ("bias_key", "i64"),
    ("mask_batch", "i64"),
    ("mask_head", "i64"),
    ("mask_row", "i64"),
    ("mask_key", "i64"),
    ("alibi_batch", "i64"),
    ("heads_kv", "int"),
    ("group", "int"),  # query heads that share a KV head
    ("row_tiles", "int"),  # tiles of the rows of a KV head
    ("splits", "int"),
    ("seqlen_q", "int"),
    ("new_keys", "int"),  # appended before this kernel runs; cache_seqlens does not count them
    ("capacity", "int"),  # keys that a sequence has room for
    ("pages", "int"),  # or a dense cache's batch entries
    ("head_dim", "int"),  # true sizes; the kernel pads
    ("head_dim_v", "int"),
    ("rotary_positions", "int"),  # rows of the tables
    ("window_left", "int"),  # -1: unlimited
    ("window_right", "int"),
    ("scale", "float"),
    ("softcap", "float"),
))  # fmt: skip
