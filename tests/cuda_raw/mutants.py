"""Faults put into the kernels' sources on purpose, each with the check that must find it.

Only the text in memory is changed. A fault that changes no result and breaks no rule is no fault, and is not here: the
order in which blocks take tiles, or a barrier between accesses to different bytes.
"""
# ruff: noqa: E501 - a table reads best as one row a line

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from faops.backends.cuda_raw.emulator import errors
from faops.backends.cuda_raw.emulator.errors import (
    DeadlockError,
    DivergentError,
    InFlightError,
    MisalignedError,
    NeverWaitedError,
    OutOfBoundsError,
    RaceError,
    ReadOnlyError,
    UndefinedError,
    UninitialisedError,
    UnsupportedError,
)
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.tiles import make_config
from faops.registry import Config


class WrongNumbers(errors.FaultError):
    """Stands for: the result misses the accuracy rule."""


class Conflicts(errors.FaultError):
    """Stands for: the counters show bank conflicts, of which the kernels have none."""


MODES = {RaceError: "thread", UndefinedError: "address", Conflicts: "counters"}


@dataclass(frozen=True)
class Scenario:
    """A call that reaches the place of a fault."""

    features: tuple[str, ...] = ()
    shape: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    config: Config | None = None


PLAIN = {"batch": 2, "seqlen_q": 70, "seqlen_k": 330, "head_dim": 64, "head_dim_v": 64}
ONE_HEAD = {**PLAIN, "batch": 1, "heads_q": 1, "heads_kv": 1}
EVEN = {"scale": 0.01}  # every key has about the same weight, so that a single one is seen to be missing


def banded(M: int, N: int, window: tuple[int, int]) -> Scenario:
    return Scenario(("window",), {**ONE_HEAD, "seqlen_q": M, "seqlen_k": N}, {"window": window, **EVEN})


SCENARIOS = {
    "gqa": Scenario(("gqa",), PLAIN),
    "one head": Scenario((), ONE_HEAD),
    "steep": Scenario((), ONE_HEAD, {"scale": 2.0}),
    "negative scale": Scenario(("scale",), ONE_HEAD, {"scale": -0.2}),
    "shared queries": Scenario((), ONE_HEAD, config=make_config(64, 64, 4, 1, False)),
    "large": Scenario((), {**ONE_HEAD, "seqlen_q": 140}, config=make_config(128, 64, 4, 1, True)),
    "few stages": Scenario((), ONE_HEAD, config=make_config(64, 64, 4, 1, True)),
    "dead tile": Scenario(("causal",), {**ONE_HEAD, "seqlen_q": 140, "seqlen_k": 20},
                          config=make_config(64, 64, 4, 1, False)),
    "causal": Scenario(("causal",), PLAIN),
    # Lengths at which one pair of a row and a key tells < from <=: the last key of a block, the first one of the next.
    "right edge": Scenario(("causal",), {**ONE_HEAD, "seqlen_k": 132}, EVEN),
    "right end": Scenario(("causal",), {**ONE_HEAD, "seqlen_k": 129}, EVEN),
    "left start": banded(70, 153, (20, -1)),
    "left edge": banded(150, 172, (20, -1)),
    "keys edge": Scenario((), {**ONE_HEAD, "seqlen_k": 127}, EVEN),
    "window": banded(140, 330, (40, 30)),
    "alibi": Scenario(("alibi_batch",), PLAIN),
    "softcap": Scenario(("softcap",), PLAIN, {"softcap": 1.0}),
    "bias": Scenario(("bias",), {**PLAIN, "seqlen_k": 65}),
    "bias pairs": Scenario(("bias",), {**PLAIN, "seqlen_k": 66}),
    "mask": Scenario(("mask",), PLAIN),
    "sinks": Scenario(("sinks",), PLAIN),
    "dropout": Scenario(("dropout",), PLAIN, {"dropout_p": 0.4}),
    "value dim": Scenario(("value_dim",), PLAIN),
    "padded width": Scenario(("causal",), {**PLAIN, "head_dim": 40, "head_dim_v": 24}),
    "odd width": Scenario(("causal",), {**PLAIN, "head_dim": 33, "head_dim_v": 21}),
    "narrow": Scenario((), {**ONE_HEAD, "head_dim": 32, "head_dim_v": 32}),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """``old``, which stands ``count`` times in ``file``, becomes ``new``; on ``card`` that must give ``caught``."""

    name: str
    card: str
    file: str
    old: str
    new: str
    scenario: str
    caught: type[errors.FaultError] = WrongNumbers
    count: int = 1
    sample: bool = False  # runs in the short run too

    @property
    def mode(self) -> str:
        """The emulator's mode in which it is caught."""
        return MODES.get(self.caught, "run")

    def apply(self, source: Source) -> Source:
        """The source with the fault."""
        texts = _texts(source)
        texts[self.file] = texts[self.file].replace(self.old, self.new)
        main = texts.pop(f"{source.name}.cu")
        return replace(source, text=main, headers=tuple(sorted(texts.items())))


def _texts(source: Source) -> dict[str, str]:
    return {**dict(source.headers), f"{source.name}.cu": source.text}


SM75, SM80 = "sm75_forward.cu", "sm80_forward.cu"
BARRIER = "sync_block();"
LOOP_WAIT = "copy_async_wait<AHEAD - 1>();\n        sync_block();\n        "

# fmt: off
BARRIERS = [
    Mutant("sm80: no barrier before the queries are kept", "a100", SM80, f"{BARRIER}\n        queries.keep();", "queries.keep();", "one head", UninitialisedError),
    Mutant("sm80: no barrier after the queries are kept", "a100", SM80, f"queries.keep();\n        {BARRIER}", "queries.keep();", "one head", RaceError),
    Mutant("sm80: no barrier before the keys are used", "a100", SM80, f"{BARRIER}\n        ring.fetch_values", "ring.fetch_values", "one head", InFlightError),
    Mutant("sm80: no barrier before the values are used", "a100", SM80, f"{BARRIER}\n        ring.fetch_keys(i", "ring.fetch_keys(i", "one head", RaceError, sample=True),
    Mutant("sm80: no barrier before the result is written", "a100", SM80, f"{BARRIER}\n    store_result", "store_result", "large", RaceError),
    Mutant("sm75: no barrier before the queries are kept", "t4", SM75, f"{BARRIER}\n    queries.keep();", "queries.keep();", "one head", UninitialisedError),
    Mutant("sm75: no barrier after the queries are kept", "t4", SM75, f"if constexpr (Q_IN_REGISTERS) {BARRIER}", "", "one head", RaceError),
    Mutant("sm75: no barrier before the keys are used", "t4", SM75, f"{BARRIER}\n        load_values", "load_values", "one head", RaceError),
    Mutant("sm75: no barrier before the values are used", "t4", SM75, f"{BARRIER}\n        if (block >", "if (block >", "one head", UninitialisedError, sample=True),
    Mutant("sm75: no barrier before the result is written", "t4", SM75, f"{BARRIER}\n    store_result", "store_result", "large", RaceError),
    Mutant("no warp barrier in the result's way", "a100", "store.cuh", "sync_warp();", "", "one head", RaceError),
    Mutant("one warp leaves out a barrier", "t4", SM75, f"{BARRIER}\n        load_values", f"if (warp_index()) {BARRIER}\n load_values", "one head", DeadlockError),
    Mutant("one lane leaves out a matrix read", "a100", "matrix.cuh", "ldmatrix_transposed(b,", "if (lane_index() != 5) ldmatrix_transposed(b,", "one head", DivergentError),
]

WAITS = [
    Mutant("keys are waited for too weakly", "a100", SM80, f"{LOOP_WAIT}ring.fetch_values", f"copy_async_wait<AHEAD>();\n{BARRIER} ring.fetch_values", "one head", InFlightError, sample=True),
    Mutant("keys are not waited for", "a100", SM80, f"{LOOP_WAIT}ring.fetch_values", f"{BARRIER} ring.fetch_values", "one head", InFlightError),
    Mutant("values are waited for too weakly", "a100", SM80, f"{LOOP_WAIT}ring.fetch_keys", f"copy_async_wait<AHEAD>();\n{BARRIER} ring.fetch_keys", "one head", InFlightError),
    Mutant("values are not waited for", "a100", SM80, f"{LOOP_WAIT}ring.fetch_keys", f"{BARRIER} ring.fetch_keys", "few stages", InFlightError),
    Mutant("queries are waited for too weakly", "a100", SM80, "copy_async_wait<1>();", "copy_async_wait<2>();", "one head", InFlightError),
    Mutant("queries are not committed", "a100", SM80, "copy_async_commit();\n        ring.fetch_keys(0);", "ring.fetch_keys(0);", "one head", InFlightError),
    Mutant("copies are not committed", "a100", SM80, "        }\n        copy_async_commit();", "        }", "one head", InFlightError, count=2),
    Mutant("no last wait", "a100", SM80, "copy_async_wait<0>();", "", "dead tile", InFlightError),
    Mutant("no last wait nor barrier", "a100", SM80, "store_result(rows, lse, params, work_again, shared);", "copy_chunk(shared, params.q, 16); copy_async_commit();", "one head", NeverWaitedError),
    Mutant("keys are never written", "t4", SM75, "if (work.end_block > work.first_block) key_copy.store(key_tile);", "", "shared queries", UninitialisedError),
    Mutant("values are never written", "t4", SM75, "value_copy.store(value_tile);", "", "one head", UninitialisedError),
    Mutant("keys are one slot on", "a100", SM80, "ring.key_slot(i)", "ring.key_slot(i + 1)", "one head", InFlightError),
    Mutant("values are one slot on", "a100", SM80, "ring.value_slot(i)", "ring.value_slot(i + 1)", "one head", InFlightError),
    Mutant("values go one slot on", "a100", SM80, "value_slot(i), values", "value_slot(i + 1), values", "one head", InFlightError),
    Mutant("keys are asked for a block early", "a100", SM80, "ring.fetch_keys(i + STAGES)", "ring.fetch_keys(i + STAGES + 1)", "one head", InFlightError),
    Mutant("a ring of one slot more", "a100", SM80, "i % STAGES * ValueTile", "i % (STAGES + 1) * ValueTile", "one head", OutOfBoundsError, sample=True),
    Mutant("values lie over the keys", "t4", SM75, "VALUES_START = KEYS_START + KeyTile::BYTES", "VALUES_START = KEYS_START", "one head"),
]

ADDRESSES = [
    Mutant("rows start one late, cp.async", "a100", "copy_async.cuh", "source + mine.row * stride", "source + (mine.row + 1) * stride", "one head", OutOfBoundsError),
    Mutant("rows start one late, registers", "t4", "copy_registers.cuh", "source + mine.row * stride", "source + (mine.row + 1) * stride", "one head", OutOfBoundsError),
    Mutant("chunks are one on", "a100", "copy_async.cuh", "from + element, bytes", "from + (element ^ 8), bytes", "one head", OutOfBoundsError),
    Mutant("chunks start one element late", "a100", "copy_async.cuh", "mine.chunk * 8;", "mine.chunk * 8 + 1;", "one head", MisalignedError, sample=True),
    Mutant("chunks start two elements late, registers", "t4", "copy_registers.cuh", "mine.chunk * 8;", "mine.chunk * 8 + 2;", "one head", MisalignedError),
    Mutant("chunks of 8 bytes in shared memory", "t4", "tile.cuh", "(chunk ^ twist(row)) * 16)", "(chunk ^ twist(row)) * 8)", "one head", MisalignedError),
    Mutant("one row more is read, cp.async", "a100", "copy_async.cuh", "i * Chunks::ROW_STEP < valid", "i * Chunks::ROW_STEP <= valid", "one head", OutOfBoundsError),
    Mutant("one row more is read, registers", "t4", "copy_registers.cuh", "i * Chunks::ROW_STEP < valid", "i * Chunks::ROW_STEP <= valid", "one head", OutOfBoundsError),
    Mutant("rows are read in full width, cp.async", "a100", "copy_async.cuh", "if constexpr (!FULL_WIDTH) bytes", "if constexpr (false) bytes", "padded width", OutOfBoundsError),
    Mutant("rows are read in full width, registers", "t4", "copy_registers.cuh", "if constexpr (!FULL_WIDTH) elements", "if constexpr (false) elements", "padded width", OutOfBoundsError),
    Mutant("the rest of a chunk is not zero", "a100", "copy_async.cuh", "part < bytes ? load_global(from + part / 2) : u16(0)", "load_global(from + part / 2)", "odd width", OutOfBoundsError),
    Mutant("rows behind the last one are written", "a100", "store.cuh", "if (work.first_row + row >= work.rows) continue;", "", "one head", OutOfBoundsError),
    Mutant("lse behind the last row is written", "t4", "store.cuh", "lane % 4 == 0 && at < work.rows", "lane % 4 == 0", "one head", OutOfBoundsError),
    Mutant("the result is written in full width", "a100", "store.cuh", "if (chunk * 8 < params.head_dim_v) ", "", "padded width", OutOfBoundsError),
    Mutant("odd widths are written as even ones", "a100", "store.cuh", "if (element + 1 < params.head_dim_v) ", "", "odd width", OutOfBoundsError),
    Mutant("the result goes one element on", "a100", "store.cuh", "row * params.out_row + chunk * 8", "row * params.out_row + chunk * 8 + 1", "one head", MisalignedError),
    Mutant("the result goes over the queries", "t4", "store.cuh", "u16* out = params.out +", "u16* out = const_cast<u16*>(params.q) +", "one head", ReadOnlyError, sample=True),
    Mutant("bias is read behind the last row", "a100", "scores.cuh", "if (at_row >= work.rows) return;", "", "bias", OutOfBoundsError),
    Mutant("bias is read behind the last key", "t4", "scores.cuh", "if (at_key + e < work.keys) value[e]", "value[e]", "bias", OutOfBoundsError),
    Mutant("bias is read in pairs behind the last key", "a100", "scores.cuh", "if (at_key + 1 < work.keys)", "", "bias pairs", OutOfBoundsError),
    Mutant("the mask is read behind the last key", "a100", "scores.cuh", "at_key < work.keys && !load_global", "!load_global", "mask", OutOfBoundsError),
    Mutant("the mask is read behind the last row", "t4", "scores.cuh", "if (at_row >= work.rows) continue;", "", "mask", OutOfBoundsError),
    Mutant("a local array is too short", "a100", "matrix.cuh", "[Q_IN_REGISTERS ? DEPTHS : 1]", "[Q_IN_REGISTERS ? DEPTHS - 1 : 1]", "one head", UndefinedError),
    Mutant("an instruction that Turing lacks", "t4", "element.cuh", "MMA_DEPTH == 8", "MMA_DEPTH == 9", "one head", UnsupportedError, sample=True),
    Mutant("tiles are not twisted", "a100", "tile.cuh", "return (row / (8 / SPREAD)) & (SPREAD - 1);", "return 0;", "one head", Conflicts, sample=True),
    Mutant("narrow tiles are twisted too little", "t4", "tile.cuh", "CHUNKS % 4 == 0 ? 4 : 2", "2", "narrow", Conflicts),
]

NUMBERS = [
    Mutant("key rows of a fragment in another order", "a100", "matrix.cuh", "lane(lane_index() % 8 + lane_index() / 16 * 8, lane_index() / 8 % 2)", "lane(lane_index() % 16, lane_index() / 16)", "one head"),
    Mutant("key fragments swapped", "a100", "matrix.cuh", "multiply_add(scores[m][2 * n], a[m], b[0], b[1])", "multiply_add(scores[m][2 * n], a[m], b[1], b[0])", "one head", sample=True),
    Mutant("value fragments swapped", "t4", "matrix.cuh", "multiply_add(rows.out[m][2 * n + 1], a[m], b[2], b[3])", "multiply_add(rows.out[m][2 * n + 1], a[m], b[0], b[1])", "one head"),
    Mutant("values not transposed", "t4", "matrix.cuh", "ldmatrix_transposed(b,", "ldmatrix(b,", "one head"),
    Mutant("probability fragments in another order", "a100", "matrix.cuh", "[2 * k + i / 2][2 * (i % 2)]", "[2 * k + i % 2][2 * (i / 2)]", "one head"),
    Mutant("pairs packed in the other order", "t4", "element.cuh", "return pack_f16(low, high)", "return pack_f16(high, low)", "one head"),
    Mutant("half of a product is done twice", "t4", "element.cuh", "mma_m16n8k8_f16(c, a[2], a[3], b1);", "mma_m16n8k8_f16(c, a[0], a[1], b0);", "one head"),
    Mutant("a block column in the wrong place", "a100", "tile.cuh", "((k & 3) * 32)", "((k & 1) * 32)", "one head"),
    Mutant("groups of heads not divided", "a100", SM80, "work.head / params.group", "work.head", "gqa", OutOfBoundsError),
    Mutant("groups of heads interleaved", "t4", SM75, "work.head / params.group", "work.head % (params.heads / params.group)", "gqa"),
    Mutant("strides of the keys for the values", "a100", SM80, "values + row * params.v_row, params.v_row", "values + row * params.v_row, params.k_row", "value dim", OutOfBoundsError),
    Mutant("batch ignored in the values", "t4", SM75, "params.v + work.batch * params.v_batch", "params.v + work.batch * 0", "gqa"),
    Mutant("sequences start at 0, keys", "a100", SM80, "work.key_start * params.k_row", "0", "packed"),
    Mutant("sequences start at 0, queries", "t4", SM75, "(work.row_start + work.first_row) * params.q_row", "work.first_row * params.q_row", "packed"),
    Mutant("sequences start at 0, lse", "a100", "store.cuh", "work.head * params.lse_head + work.row_start", "work.head * params.lse_head", "packed"),
    Mutant("the longest sequence is every sequence", "t4", "work.cuh", "keys = load_global(params.cu_seqlens_k + batch + 1) - static_cast<int>(key_start);", "", "packed"),
    Mutant("rows behind the last sequence stay as they were", "a100", SM80, "return clear_padding(params, block_index() - block_count() + params.heads);", "return;", "packed", sample=True),
    Mutant("lse behind the last sequence stays as it was", "t4", "work.cuh", "if (lane_index() == 0) store_global(params.lse", "if (lane_index() == 99) store_global(params.lse", "packed"),
    Mutant("causal hides the diagonal", "a100", "scores.cuh", "diagonal + params.window_right + 1)", "diagonal + params.window_right)", "causal", sample=True),
    Mutant("causal shows one key too many", "t4", "scores.cuh", "diagonal + params.window_right + 1)", "diagonal + params.window_right + 2)", "causal"),
    Mutant("a window shows one key too few to the left", "a100", "scores.cuh", "at_key < start", "at_key <= start", "window"),
    Mutant("a window shows one key too many to the left", "t4", "scores.cuh", "start = diagonal - params.window_left", "start = diagonal - params.window_left - 1", "window"),
    Mutant("the key behind the last one is seen", "a100", "scores.cuh", "at_key >= end", "at_key > end", "one head"),
    Mutant("an edge block at the keys' end is missed", "t4", "work.cuh", "edge = end_key > keys", "edge = end_key > keys + 1", "keys edge"),
    Mutant("an edge block to the right is missed", "a100", "work.cuh", "edge |= end_key - 1 >", "edge |= end_key - 2 >", "right edge"),
    Mutant("an edge block to the left is missed", "t4", "work.cuh", "edge |= first_key <", "edge |= first_key + 1 <", "left edge"),
    Mutant("the last block is missed", "a100", "work.cuh", "last_row + shift + params.window_right + 1)", "last_row + shift + params.window_right)", "right end"),
    Mutant("the first block is missed", "t4", "work.cuh", "first_row + shift - params.window_left)", "first_row + shift - params.window_left + 1)", "left start"),
    Mutant("the diagonal starts at the top left", "a100", "work.cuh", "shift = keys - rows;", "shift = 0;", "causal"),
    Mutant("the result is not rescaled", "a100", "softmax.cuh", "out[m][n][2 * half + 1] *= shrink;", "", "steep", sample=True),
    Mutant("levels rise too late for 16 bits", "a100", "softmax.cuh", "* factor > GROWTH", "* factor > 20 * GROWTH", "steep"),
    Mutant("the sum is not rescaled", "t4", "softmax.cuh", "sum_of[m][half] *= shrink;", "", "steep"),
    Mutant("the sum lacks half of its lanes", "a100", "softmax.cuh", "sum += shuffle_xor(sum, 2);", "", "one head"),
    Mutant("the maximum lacks half of its lanes", "t4", "softmax.cuh", "most = maximum(most, shuffle_xor(most, 2));", "", "steep"),
    Mutant("a row without a key divides by 0", "a100", "softmax.cuh", "dead ? 0.0f : divide_fast", "divide_fast", "dead tile"),
    Mutant("a row without a key so far subtracts infinities", "t4", "softmax.cuh", "level == -infinity() ? 0.0f : level * factor", "level * factor", "window"),
    Mutant("lse without the sink", "a100", "softmax.cuh", "highest = with_sink;", "", "sinks"),
    Mutant("the sum without the sink", "t4", "softmax.cuh", "fused_multiply_add(sum, shrink, exp2_fast(sink - with_sink))", "sum * shrink", "sinks"),
    Mutant("the sink of another head", "a100", "softmax.cuh", "params.sinks + work.head", "params.sinks", "sinks"),
    Mutant("lse in binary digits", "t4", "softmax.cuh", "(highest + log2_fast(sum)) * LN_2", "highest + log2_fast(sum)", "one head"),
    Mutant("dropout words swapped", "a100", "softmax.cuh", "odd ? words[2 + e] : words[e]", "odd ? words[e] : words[2 + e]", "dropout", sample=True),
    Mutant("dropout rows swapped", "t4", "softmax.cuh", "upper = odd ? theirs[e] : mine[e]", "upper = odd ? mine[e] : theirs[e]", "dropout"),
    Mutant("dropout does not know the batch", "a100", "softmax.cuh", "logits.work.batch * params.heads + logits.work.head", "logits.work.head", "dropout"),
    Mutant("dropout does not scale", "t4", "softmax.cuh", "shrink *= params.keep_scale", "shrink *= 1", "dropout"),
    Mutant("dropout drops the other side", "a100", "softmax.cuh", "lower < params.drop_below", "lower > params.drop_below", "dropout"),
    Mutant("another constant of Philox", "t4", "philox.cuh", "0xCD9E8D57u", "0xCD9E8D59u", "dropout", count=2),
    Mutant("nine rounds of Philox", "a100", "philox.cuh", "round < 10", "round < 9", "dropout"),
    Mutant("ALiBi without its absolute value", "a100", "scores.cuh", "rows.slope(m, half) * magnitude(", "rows.slope(m, half) * (", "alibi"),
    Mutant("ALiBi does not know the batch", "t4", "head_rows.cuh", "work.batch * params.alibi_batch + work.head", "work.head", "alibi"),
    Mutant("half the softcap's argument", "a100", "scores.cuh", "params.softcap * 2 * LOG2_E", "params.softcap * LOG2_E", "softcap"),
    Mutant("softcap after the bias' factor", "t4", "scores.cuh", "params.softcap * LOG2_E * (1 -", "params.softcap * (1 -", "softcap"),
    Mutant("a pair of biases swapped", "a100", "scores.cuh", "value[1] = BFLOAT16 ? widen_bf16(high) : widen_f16(high);", "value[1] = value[0];", "bias pairs"),
    Mutant("bias does not know the head", "t4", "head_rows.cuh", "work.head * params.bias_head", "0", "bias"),
    Mutant("the mask does not know the row", "a100", "scores.cuh", "at_row * params.mask_row", "0", "mask"),
    Mutant("a negative scale turns into the exponent", "a100", "scores.cuh", "|| !SCALE_POSITIVE", "", "negative scale"),
]
# fmt: on

MUTANTS = [*BARRIERS, *WAITS, *ADDRESSES, *NUMBERS]
