"""Faults put into the sources of attention over a KV cache on purpose, each with the check that must find it.

Only the text in memory is changed. Calls of a scenario have fixed lengths, which reach the place of the fault, and random
numbers all over their caches, so that a key that nobody should see would be seen.
"""
# ruff: noqa: E501 - a table reads best as one row a line

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from faops.backends.cuda_raw.decode_tiles import make_config
from faops.backends.cuda_raw.emulator.errors import (
    InFlightError,
    OutOfBoundsError,
    RaceError,
    UninitialisedError,
)
from faops.registry import Config
from tests.cuda_raw.mutants import Conflicts, Mutant
from tests.cuda_raw.support import HALF
from tests.kvcache import Call, make_call
from tests.support import random_mask

LENGTHS = (61, 0, 129)  # keys in the cache before the call
KEY_WARPS = make_config(16, 64, 4, 1, True)  # of both cards: each warp has 16 keys of a tile
ROW_WARPS = make_config(64, 32, 4, 1, True)


@dataclass(frozen=True)
class Scenario:
    """A call that reaches the place of a fault."""

    features: tuple[str, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    config: Config = KEY_WARPS
    pads: tuple[int, ...] = ()

    def call(self) -> Call:
        shape = {"M": 2, "keys": 131, "batch": 3, "heads_kv": 2, "group": 3, "dim": 32, "dim_v": 32, **self.shape}
        call = make_call(*self.features, dtype=HALF, **shape)
        options = {**call.options, "num_splits": 1, **self.options}
        options["cache_seqlens"] = torch.tensor(LENGTHS, dtype=torch.int32)
        assert call.tensors[1] is not None
        full = (shape["batch"], shape["heads_kv"] * shape["group"], shape["M"], call.tensors[1].shape[1])
        if "bias" in self.features:
            options["bias"] = torch.randn(full).half()
        if "mask" in self.features:
            options["mask"] = random_mask(full)
        if self.pads:
            options["cache_leftpad"] = torch.tensor(self.pads, dtype=torch.int32)
        for cache in call.tensors[1:3]:
            assert cache is not None
            cache.copy_(torch.randn(cache.shape))
        return replace(call, options=options)


EVEN = {"scale": 0.01}  # every key has about the same weight, so that a single one is seen to be missing

SCENARIOS = {
    "plain": Scenario(options=EVEN),
    "rows": Scenario(shape={"M": 40}, options=EVEN, config=ROW_WARPS),
    "split": Scenario(options={"num_splits": 3, **EVEN}),
    "uneven split": Scenario(options={"num_splits": 2, **EVEN}),
    "append": Scenario(("append", "causal"), options=EVEN),
    "paged": Scenario(("append",), {"page": 3}, EVEN),
    "large pages": Scenario((), {"page": 64}, EVEN),
    "padded": Scenario(("leftpad",), options=EVEN, pads=(20, 0, 70)),
    "causal": Scenario(("causal",), {"M": 7}, EVEN),
    "window": Scenario(("window",), {"M": 7}, {"window": (30, 2), **EVEN}),
    "rotary": Scenario(("rotary", "causal")),
    "standing": Scenario(("rotary_half",)),
    "batch index": Scenario(("batch_idx",)),
    "steep": Scenario(options={"scale": 2.0}),
    "sinks": Scenario(("sinks",)),
    "alibi": Scenario(("alibi_batch",)),
    "bias": Scenario(("bias",), {"M": 2}),
    "mask": Scenario(("mask",)),
    "narrow": Scenario((), {"dim": 40, "dim_v": 24}),
    "wide": Scenario(shape={"dim": 64, "dim_v": 64}),
    "two rounds": Scenario(shape={"dim": 32, "dim_v": 256}, config=make_config(16, 32, 2, 1, True)),
    "stages": Scenario(config=make_config(16, 64, 4, 3, True)),
}

DECODE = {"t4": "sm75_decode.cu", "a100": "sm80_decode.cu"}
SM75, SM80 = DECODE["t4"], DECODE["a100"]
WORK, CACHE, RESULT = "decode_work.cuh", "decode_cache.cuh", "decode_result.cuh"
WAIT = "copy_async_wait<AHEAD - 1>();\n        sync_team();\n        "

# fmt: off
MUTANTS = [
    Mutant("sm80: keys are not waited for", "a100", SM80, f"{WAIT}ring.fetch_values", "sync_team();\n ring.fetch_values", "plain", InFlightError, sample=True),
    Mutant("sm80: values are not waited for", "a100", SM80, f"{WAIT}ring.fetch_keys", "sync_team();\n ring.fetch_keys", "plain", InFlightError),
    Mutant("sm80: keys are waited for too weakly", "a100", SM80, f"{WAIT}ring.fetch_values", "copy_async_wait<AHEAD>();\n sync_team();\n ring.fetch_values", "stages", InFlightError),
    Mutant("sm80: no team barrier before the keys are used", "a100", SM80, f"{WAIT}ring.fetch_values", "copy_async_wait<AHEAD - 1>();\n ring.fetch_values", "rows", InFlightError),
    Mutant("sm80: no team barrier before the values are used", "a100", SM80, f"{WAIT}ring.fetch_keys", "copy_async_wait<AHEAD - 1>();\n ring.fetch_keys", "rows", RaceError),
    Mutant("sm80: a warp's barrier where the block shares keys", "a100", CACHE, "if constexpr (KEY_WARPS == 1)\n        sync_block();\n    else\n        sync_warp();", "sync_warp();", "rows", InFlightError),
    Mutant("sm80: no barrier before the queries are kept", "a100", SM80, "sync_block();\n    queries.keep();", "queries.keep();", "plain", UninitialisedError),
    Mutant("sm75: no barrier before the queries are kept", "t4", SM75, "sync_block();\n    queries.keep();", "queries.keep();", "plain", UninitialisedError),
    Mutant("results go over keys that are still read", "a100", RESULT, "sync_block();\n    leave_rows", "leave_rows", "rows", RaceError),
    Mutant("results are read before they are left", "a100", RESULT, "shared);\n    sync_block();\n    store_round", "shared);\n    store_round", "plain", RaceError),
    Mutant("sm75: no barrier before the keys are used", "t4", SM75, "sync_team();\n        value_copy.load", "value_copy.load", "rows", UninitialisedError, sample=True),
    Mutant("sm75: no barrier before the values are used", "t4", SM75, "sync_team();\n        if (next < end) key_copy.load", "if (next < end) key_copy.load", "rows", UninitialisedError),
    Mutant("a round goes over the one before it", "t4", RESULT, "sync_block();\n    leave_rows", "if (ROUND == 0) sync_block();\n    leave_rows", "two rounds", RaceError),
    Mutant("sm75: values are never stored", "t4", SM75, "value_copy.store(value_tile);", "", "plain", UninitialisedError),
    Mutant("sm80: pages of the values a slice late", "a100", SM80, "ring.find_pages(i + STAGES);", "ring.find_pages(i + STAGES - 1);", "paged"),
    Mutant("pages are looked up behind the keys", "a100", CACHE, "if (place >= work.keys) return -1;", "", "paged", OutOfBoundsError),
    Mutant("the slot in a page", "a100", CACHE, "PAGED ? place % larger(1, PAGE_SIZE) : place", "PAGED ? 0 : place", "paged"),
    Mutant("the table of another sequence", "t4", CACHE, "work.batch * params.table_batch", "0", "large pages"),
    Mutant("one page for a slice of several", "a100", CACHE, "PAGE_SIZE % T::ROWS == 0;", "true;", "paged"),
    Mutant("keys behind the length are read", "a100", CACHE, "place < work.keys && pages.of(i) >= 0", "pages.of(i) >= 0", "plain", OutOfBoundsError),
    Mutant("chunks of every second row untwisted", "t4", CACHE, "ROW_STEP % 8 == 0 ? 0 : ROW_STEP;", "0;", "wide"),
    Mutant("the batch index is not looked at", "a100", WORK, "params.cache_batch_idx == nullptr ? batch", "true ? batch", "batch index"),
    Mutant("new keys do not count", "a100", WORK, "past + params.new_keys", "past", "append"),
    Mutant("padding is seen", "t4", WORK, "LEFTPAD ? of_sequence(params.cache_leftpad, 0, params.capacity) : 0", "0", "padded"),
    Mutant("a padded edge is missed", "a100", WORK, "if constexpr (LEFTPAD) edge |= start < first_key;", "", "padded"),
    Mutant("an edge behind the keys is missed", "t4", WORK, "bool edge = end > keys;", "bool edge = false;", "plain"),
    Mutant("an edge to the right is missed", "a100", WORK, "end - 1 > first_position + shift", "end - 1 > last_position + shift", "causal"),
    Mutant("an edge to the left is missed", "t4", WORK, "edge |= start < last_position", "edge |= start < first_position", "window"),
    Mutant("the first block is missed", "a100", WORK, "first_block = start / TILE_N;", "first_block = (start + TILE_N - 1) / TILE_N;", "padded"),
    Mutant("the last block is missed", "t4", WORK, "(end + TILE_N - 1) / TILE_N - first_block", "end / TILE_N - first_block", "plain"),
    Mutant("splits leave out what is left over", "a100", WORK, "blocks = share + (split < left_over ? 1 : 0);", "blocks = share;", "split"),
    Mutant("splits overlap", "t4", WORK, "split * share + smaller(split, left_over)", "split * share", "uneven split"),
    Mutant("rows stand at the first query's position", "a100", WORK, "positions[m][half] = row / params.group;", "positions[m][half] = 0;", "causal"),
    Mutant("heads of a group in another order", "t4", WORK, "head = work.head * params.group + row % params.group;\n        int width", "head = work.head * params.group + (row + 1) % params.group;\n        int width", "plain"),
    Mutant("queries turn at the cache's start", "a100", WORK, "work.past + (ADVANCING ? position : 0)", "(ADVANCING ? position : 0)", "rotary"),
    Mutant("queries of a causal call stand still", "t4", WORK, "(ADVANCING ? position : 0)", "0", "rotary"),
    Mutant("queries of a call that sees all go on", "a100", WORK, "(ADVANCING ? position : 0)", "position", "standing"),
    Mutant("rows of no position are read", "a100", WORK, "position < work.rows ? params.head_dim : 0", "params.head_dim", "plain", OutOfBoundsError),
    Mutant("ALiBi does not know the head of the group", "t4", WORK, "work.batch * params.alibi_batch + head", "work.batch * params.alibi_batch + work.head", "alibi"),
    Mutant("bias does not know the sequence", "a100", WORK, "work.batch * params.bias_batch + head * params.bias_head", "head * params.bias_head", "bias"),
    Mutant("the mask does not know the head", "t4", WORK, "head * params.mask_head", "0", "mask"),
    Mutant("a warp's keys are left out at the end", "a100", RESULT, "for (int warp = 0; warp < KEY_WARPS; ++warp) {\n            Vec4", "for (int warp = 1; warp < KEY_WARPS; ++warp) {\n            Vec4", "plain", sample=True),
    Mutant("a warp's sum is left out", "t4", RESULT, "sum = fused_multiply_add(part, weights[warp], sum);", "if (warp > 0) sum = fused_multiply_add(part, weights[warp], sum);", "plain"),
    Mutant("warps' results are not weighed", "a100", RESULT, "exp2_fast(levels[warp] - base)", "1.0f", "steep"),
    Mutant("a warp without keys subtracts infinities", "t4", RESULT, "highest == -infinity() ? 0.0f : highest", "highest", "plain"),
    Mutant("the sum lacks half of its lanes", "a100", RESULT, "sum += shuffle_xor(sum, 2);", "", "plain"),
    Mutant("the sink is left out", "t4", RESULT, "scale = together.join(", "together.join(", "sinks"),
    Mutant("the sink of the KV head", "a100", RESULT, "params.sinks + head)", "params.sinks + work.head)", "sinks"),
    Mutant("rows of no position are written", "t4", RESULT, "(work.first_row + row) / params.group >= work.rows || column", "column", "plain", OutOfBoundsError),
    Mutant("the result is written in full width", "a100", RESULT, "if (column < width) store_global(reinterpret_cast<Vec2*>", "store_global(reinterpret_cast<Vec2*>", "narrow", OutOfBoundsError),
    Mutant("a split is numbered as another", "a100", RESULT, "* params.splits + work.split;\n    if", "* params.splits + (work.split + 1) % params.splits;\n    if", "split"),
    Mutant("a split's logarithm without its level", "t4", RESULT, "together.highest + log2_fast(together.sum));\n    }\n}\n\n// The result of one row of a call", "log2_fast(together.sum));\n    }\n}\n\n// The result of one row of a call", "split"),
    Mutant("a split without keys says nothing", "a100", RESULT, "work.split, -infinity());", "work.split, 0.0f);", "split"),
    Mutant("rows of results in the same banks", "a100", RESULT, "STRIDE = COLUMNS + (COLUMNS % 32 == 0 ? 8 : 24)", "STRIDE = COLUMNS + (COLUMNS % 32 == 0 ? 0 : 16)", "plain", Conflicts, sample=True),
]
# fmt: on
