"""Faults put into the sources of append and combine on purpose, each with the check that must find it."""
# ruff: noqa: E501 - a table reads best as one row a line

from __future__ import annotations

from collections.abc import Callable

import torch

from faops.backends.cuda_raw.emulator.errors import (
    MisalignedError,
    OutOfBoundsError,
    ReadOnlyError,
    UninitialisedError,
)
from tests.cuda_raw.decode.parts import (
    Change,
    Splits,
    caches_of,
    cancelling,
    check_append,
    launch_append,
    misbehaving,
    rotating,
)
from tests.cuda_raw.decode.support import inputs_of
from tests.cuda_raw.mutants import Mutant
from tests.cuda_raw.support import HALF
from tests.kvcache import Call, bits, make_call

Scenario = Callable[[str, Change | None], object]  # runs in a mode with a change; AssertionError where it is wrong


def appending(*features: str, rotary: int = 16, interleaved: bool = True, **shape: int) -> Scenario:
    def run(mode: str, change: Change | None) -> None:
        call = make_call(
            "append", *features, dtype=HALF, **{"M": 5, "keys": 40, "batch": 3, "dim": 32, "dim_v": 32, **shape}
        )
        check_append(rotating(call, rotary, HALF, interleaved) if rotary else call, mode=mode, change=change)

    return run


def hostile(spoil: Callable[[Call], None], **options: torch.Tensor) -> Scenario:
    """A call that nobody has validated leaves the caches as they were."""

    def run(mode: str, change: Change | None) -> None:
        call, inputs = misbehaving(**options)
        spoil(call)
        before = [bits(cache).clone() for cache in caches_of(call)]
        launch_append(inputs, mode=mode, change=change)
        for cache, old in zip(caches_of(call), before):
            assert torch.equal(bits(cache), old)

    return run


def lost_page(call: Call) -> None:
    call.options["block_table"][:] = 10**6


def no_room(call: Call) -> None:
    call.options["cache_seqlens"][:] = 10**6


def last_place(mode: str, change: Change | None) -> None:
    """The first of the new keys has the last place of the cache, and the others none."""
    _, inputs = misbehaving()
    assert inputs.cache_seqlens is not None
    inputs.cache_seqlens[:] = inputs.capacity - 1
    launch_append(inputs, mode=mode, change=change)


def behind_the_table(mode: str, change: Change | None) -> None:
    call = rotating(make_call("append", dtype=HALF, M=5, keys=30, dim=32, dim_v=32), 16, HALF, True, positions=1)
    launch_append(inputs_of(call), mode=mode, change=change)


def combining(splits: int = 7, dead: bool = False, sinks: bool = False, dim_v: int = 32, far: float = 1.0) -> Scenario:
    def run(mode: str, change: Change | None) -> None:
        case = Splits(splits, dim_v=dim_v, sinks=sinks)
        case.logs *= far
        if dead:
            mask = torch.rand(case.logs.shape) < 0.5
            mask[0, 0, 0] = True
            case.hide(mask)
        case.check(mode, change=change)

    return run


SCENARIOS: dict[str, Scenario] = {
    "plain": appending(rotary=0),
    "interleaved": appending(),
    "halves": appending(interleaved=False),
    "straddling halves": appending(rotary=12, interleaved=False),
    "part": appending(rotary=3),
    "paged": appending(page=3),
    "batch index": appending("batch_idx"),
    "value dim": appending("value_dim", rotary=0),
    "narrow": appending(rotary=0, dim=36, dim_v=36),
    "odd": appending(rotary=0, dim=33, dim_v=21),
    "cancelling": lambda mode, change: check_append(cancelling(), mode=mode, change=change),
    "lost page": hostile(lost_page),
    "lost entry": hostile(lambda call: None, cache_batch_idx=torch.full((3,), -1, dtype=torch.int32)),
    "no room": hostile(no_room),
    "last place": last_place,
    "behind the table": behind_the_table,
    "splits": combining(),
    "many splits": combining(40),
    "far apart": combining(far=40.0),
    "more splits": combining(100),
    "dead": combining(dead=True),
    "sinks": combining(sinks=True),
    "odd combine": combining(dim_v=33),
}

APPEND, COMBINE, ROTARY, CHUNK = "decode_append.cu", "decode_combine.cu", "rotary.cuh", "chunk.cuh"

# fmt: off
MUTANTS = [
    Mutant("append: keys go one place on", "a100", APPEND, "position = length + token;", "position = length + token + 1;", "plain"),
    Mutant("append: all new keys go to one place", "a100", APPEND, "position = length + token;", "position = length;", "paged", sample=True),
    Mutant("append: the slot in a page", "a100", APPEND, "slot = position % PAGE_SIZE;", "slot = 0;", "paged"),
    Mutant("append: the table of another sequence", "a100", APPEND, "sequence * params.table_batch + ", "", "paged"),
    Mutant("append: the batch index is not looked at", "a100", APPEND, "BATCH_INDEX ?", "false ?", "batch index"),
    Mutant("append: heads of the values", "a100", APPEND, "place.head * params.v_head", "0", "plain"),
    Mutant("append: heads of the cache", "a100", APPEND, "place.head * params.k_cache_head", "0", "plain"),
    Mutant("append: tokens of the keys", "a100", APPEND, "place.token * params.k_row", "0", "plain"),
    Mutant("append: strides of the keys for the values", "a100", APPEND, "place.slot * params.v_cache_row", "place.slot * params.k_cache_row", "value dim"),
    Mutant("append: a row too many", "a100", APPEND, "|| row >= params.rows", "", "plain", OutOfBoundsError),
    Mutant("append: lengths are not checked", "a100", APPEND, "inside = length >= 0 && length < params.capacity - token;", "inside = true;", "no room", OutOfBoundsError),
    Mutant("append: the room for the first new key is room for all", "a100", APPEND, "params.capacity - token;", "params.capacity;", "last place", OutOfBoundsError),
    Mutant("append: page numbers are not checked", "a100", APPEND, "inside = static_cast<u32>(page) < static_cast<u32>(params.pages);", "", "lost page", OutOfBoundsError, sample=True),
    Mutant("append: negative page numbers pass", "a100", APPEND, "static_cast<u32>(page) < static_cast<u32>(params.pages)", "page < params.pages", "lost entry", OutOfBoundsError),
    Mutant("append: the new keys are written over", "a100", APPEND, "u16* to = params.k_cache +", "u16* to = const_cast<u16*>(params.k) +", "plain", ReadOnlyError),
    Mutant("append: chunks start an element late", "a100", APPEND, "write_chunk<KEY_BYTES>(to + first,", "write_chunk<KEY_BYTES>(to + first + 1,", "plain", MisalignedError),
    Mutant("chunk: half a chunk is read as a whole", "a100", CHUNK, "if (elements > 4) high", "if (true) high", "narrow", OutOfBoundsError),
    Mutant("chunk: half a chunk is written as a whole", "a100", CHUNK, "if (elements > 4) store_global", "if (true) store_global", "narrow"),
    Mutant("chunk: odd widths are written as even ones", "a100", CHUNK, "if (elements > 2 * i + 1) store_global", "if (elements > 2 * i) store_global", "odd"),
    Mutant("rotary: nothing turns", "a100", ROTARY, "first + 2 * i < ROTARY_DIM ? narrow", "false ? narrow", "interleaved"),
    Mutant("rotary: everything turns", "a100", ROTARY, "first + 2 * i < ROTARY_DIM ? narrow", "true ? narrow", "part"),
    Mutant("rotary: the other way round", "a100", ROTARY, "(leads ? -across : across)", "(leads ? across : -across)", "interleaved"),
    Mutant("rotary: neighbours are not exchanged", "a100", ROTARY, "chunk.y << 16 | chunk.y >> 16", "chunk.y", "interleaved"),
    Mutant("rotary: halves lead the wrong way", "a100", ROTARY, "bool leads = INTERLEAVED ? half == 0 : first + 2 * i + half < PAIRS;", "bool leads = half == 0;", "halves"),
    Mutant("rotary: the partner is the chunk itself", "a100", ROTARY, "(first < PAIRS ? first + PAIRS : first - PAIRS), CHUNK", "first, CHUNK", "halves"),
    Mutant("rotary: partners of a chunk that straddles", "a100", ROTARY, "int other = element < PAIRS ?", "int other = first < PAIRS ?", "straddling halves"),
    Mutant("rotary: angles of a chunk that straddles", "a100", ROTARY, "INTERLEAVED || element < PAIRS || first >= PAIRS", "true", "straddling halves"),
    Mutant("rotary: the angles of position 0", "a100", ROTARY, "row = static_cast<i64>(inside) * PAIRS;", "row = 0;", "halves"),
    Mutant("rotary: a table is read behind its end", "a100", ROTARY, "position > last ? last : position", "position", "behind the table", OutOfBoundsError, sample=True),
    Mutant("rotary: a product fused into a sum", "a100", ROTARY, "rounded_product(widen(mine[i], half), cosine[angle]) + (leads ? -across : across)", "fused_multiply_add(widen(mine[i], half), cosine[angle], leads ? -across : across)", "cancelling", sample=True),
    Mutant("combine: no barrier", "a100", COMBINE, "sync_block();", "", "splits", UninitialisedError),
    Mutant("combine: a warp's barrier for the block's", "a100", COMBINE, "sync_block();", "sync_warp();", "many splits", UninitialisedError),
    Mutant("combine: a team is left out", "a100", COMBINE, "for (int other = 1;", "for (int other = 2;", "splits", sample=True),
    Mutant("combine: every second split", "a100", COMBINE, "split += AHEAD * TEAMS", "split += 2 * AHEAD * TEAMS", "more splits"),
    Mutant("combine: weights are relative to 0", "a100", COMBINE, "exp2_fast(log - base)", "exp2_fast(log)", "far apart"),
    Mutant("combine: splits that saw nothing are read", "a100", COMBINE, "if (weights[i] > 0) read_column", "if (at < params.splits) read_column", "dead", sample=True),
    Mutant("combine: dead rows divide by 0", "a100", COMBINE, "alive ? divide_fast(shrink, total.sum) : 0.0f", "divide_fast(shrink, total.sum)", "dead"),
    Mutant("combine: lse of dead rows", "a100", COMBINE, "alive ? (total.highest + log2_fast(total.sum)) * LN_2 : -infinity()", "0.0f", "dead"),
    Mutant("combine: the maximum lacks lanes", "a100", COMBINE, "higher = maximum(higher, shuffle_xor(higher, lanes));", "higher = maximum(higher, shuffle_xor(higher, lanes & 15));", "many splits"),
    Mutant("combine: the sum lacks lanes", "a100", COMBINE, "sum += shuffle_xor(sum, lanes);", "sum += lanes == 2 ? 0 : shuffle_xor(sum, lanes);", "splits"),
    Mutant("combine: the sum is not rescaled", "a100", COMBINE, "sum = sum * weight(highest, higher) + weight(log, higher);", "sum = sum + weight(log, higher);", "many splits"),
    Mutant("combine: the sink is not in the sum", "a100", COMBINE, "sum = fused_multiply_add(sum, shrink, weight(logit, higher));", "sum *= shrink;", "sinks"),
    Mutant("combine: the sink does not shrink the result", "a100", COMBINE, "shrink = total.join(", "total.join(", "sinks"),
    Mutant("combine: the sink of another head", "a100", COMBINE, "params.sinks + head", "params.sinks + position", "sinks"),
    Mutant("combine: heads of a group in another order", "a100", COMBINE, "row_of_head % GROUP;", "(GROUP - 1 - row_of_head % GROUP);", "splits"),
    Mutant("combine: logarithms of another row", "a100", COMBINE, "all_splits * HEAD_DIM_V + first_split;", "all_splits * HEAD_DIM_V;", "splits"),
    Mutant("combine: lse in binary digits", "a100", COMBINE, "log2_fast(total.sum)) * LN_2", "log2_fast(total.sum))", "splits"),
    Mutant("combine: a column behind the row's end is written", "a100", COMBINE, "if (first + i < HEAD_DIM_V) store_global", "store_global", "odd combine", OutOfBoundsError),
]
# fmt: on
