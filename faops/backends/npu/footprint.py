"""What the kernels of this backend cost: the copies and masks around an operator, and the least that it must do itself.

The inside of an operator is CANN's. It counts as that of a library: the products of the pairs that it cannot skip, and
every operand once. So configs are told apart by what they add: tensors brought into another layout, masks and biases
written out, keys gathered. Tensors count as contiguous (B, M, H, D), which is how the tuner makes them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from faops.backends.npu import masks
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.problem import UNLIMITED, AttentionProblem
from faops.registry import Config
from faops.tiling import filled

FLOAT32 = 4  # bytes
LANES = 8  # each softmax result is kept so many times
KIB = 1024

# Passes over a materialised mask or pse while it is made, reading and writing, and the operations started.
OF_MASK, OF_BAND_IN_MASK = (3, 2), (3, 1)
OF_PSE, OF_ALIBI_IN_PSE = (5, 3), (8, 5)
OF_LSE, OF_SOFTMAX = 3, 3  # operations around the softmax results: to lse, and from it
OF_APPEND, OF_ROTARY = 6, 9  # operations that write new keys; that rotate queries or keys
OF_GATHERED, OF_MERGED = 2, 4  # operations of each part of the keys; of putting parts together


class Extra(NamedTuple):
    """What happens around an operator: bytes read and written, and operations started."""

    traffic: float = 0.0
    operations: int = 0

    def __add__(self, other: object) -> Extra:
        assert isinstance(other, Extra)
        return Extra(self.traffic + other.traffic, self.operations + other.operations)


def forward(problem: AttentionProblem, device: DeviceProfile, config: Config, head_dim_step: int = 1) -> Footprint:
    """A forward call, dense or packed; head dims are padded to a multiple of ``head_dim_step``, one for all tensors."""
    extra = _layout(problem, config) + _padding(problem, head_dim_step) + _scores(problem)
    if problem.need_lse or problem.sinks:
        extra += Extra(3 * _of_rows(problem), OF_LSE)
    return _with(extra, _operator(problem, config, 2 * LANES * _of_rows(problem)))


def backward(problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
    """A backward call. lse is spread over the lanes of two softmax results."""
    softmax = 2 * LANES * _of_rows(problem)
    extra = _layout(problem, config) + _scores(problem) + Extra(softmax, OF_SOFTMAX)
    return _with(extra, _operator(problem, config, softmax))


def decode(problem: AttentionProblem, device: DeviceProfile, config: Config, reads_pages: bool) -> Footprint:
    """A KV-cache call over a full cache; ``reads_pages`` says whether the operator takes pages of that size."""
    rotations = (1 + problem.append) * bool(problem.rotary)
    extra = Extra(0.0, OF_APPEND * problem.append + OF_ROTARY * rotations) + _scores(problem)
    if problem.sinks:
        extra += Extra(3 * _of_rows(problem), OF_LSE)
    return _with(extra + _gathering(problem, config, reads_pages), _operator(problem, config, 0.0))


def _with(extra: Extra, operator: Footprint) -> Footprint:
    """What is around an operator, then the operator: one after the other, on the same memory."""
    if not extra.operations:
        return operator
    return Footprint(
        blocks=1, threads=0, registers=0, shared_bytes=0, matrix_flops=0.0, traffic=extra.traffic,
        launches=extra.operations, memory=extra.traffic, then=operator,
    )  # fmt: skip


def _operator(problem: AttentionProblem, config: Config, softmax: float) -> Footprint:
    """The least that the operator must do; ``softmax`` are the bytes of its softmax results."""
    pairs, products = float(_pairs(problem, config)), float(problem.flops())
    seen = max(1, problem.band.visible_pairs(problem.seqlen_q, problem.seqlen_k))
    products *= pairs / (seen * max(1, problem.batch * problem.heads_q))
    read = problem.bytes_moved() + softmax + _pse_bytes(problem) + _mask_read(problem, config)
    exact = problem.dtype == "float32"  # the matrix units take 16 bits
    share = filled(problem)
    return Footprint(
        blocks=1, threads=0, registers=0, shared_bytes=0, matrix_flops=0.0 if exact else products * share,
        traffic=read * share, vector_flops=products * share if exact else 0.0, exponentials=pairs * share,
        memory=read * share,
    )  # fmt: skip


def _pairs(problem: AttentionProblem, config: Config) -> int:
    """Pairs of row and key that the operator computes: all where nothing but a mask tells which are hidden."""
    heads, band = problem.batch * problem.heads_q, problem.band
    of_mask = bool(problem.mask) or (config.get("mask") == "full" and _starts_right(problem))
    if of_mask:
        return heads * problem.seqlen_q * problem.seqlen_k
    return heads * band.visible_pairs(problem.seqlen_q, problem.seqlen_k)


def _starts_right(problem: AttentionProblem) -> bool:
    """Whether the band's left side lies right of the top left corner, so that no argument beside a mask tells it."""
    return problem.band.left != UNLIMITED and problem.band.left < problem.seqlen_k - problem.seqlen_q


def _mask_read(problem: AttentionProblem, config: Config) -> int:
    """Bytes of the mask that the operator reads."""
    if problem.mask:
        return masks.mask_bytes(problem)
    if problem.band.full:
        return 0
    whole = config.get("mask") == "full"
    return problem.seqlen_q * problem.seqlen_k if whole else masks.COMPRESSED_SIZE**2


def _pse_bytes(problem: AttentionProblem) -> int:
    """Bytes of what is added to the scores, written out for all heads; ALiBi of equal lengths the operator computes."""
    written_alibi = problem.alibi and (bool(problem.bias) or problem.seqlen_q != problem.seqlen_k)
    if not problem.bias and not written_alibi:
        return 0
    rows = problem.seqlen_q if written_alibi or "m" in problem.bias else 1
    planes = problem.heads_q * (problem.batch if "b" in problem.bias else 1)
    return planes * rows * problem.seqlen_k * problem.torch_dtype.itemsize


def _of_rows(problem: AttentionProblem) -> float:
    """Bytes of one float32 for each row of each head."""
    return float(FLOAT32 * problem.batch * problem.heads_q * problem.seqlen_q)


def _tensors(problem: AttentionProblem) -> list[tuple[int, int, int]]:
    """(length, heads, head dim) of every operand and result."""
    rows, keys = problem.seqlen_q, problem.seqlen_k
    q, out = (rows, problem.heads_q, problem.head_dim), (rows, problem.heads_q, problem.head_dim_v)
    k, v = (keys, problem.heads_kv, problem.head_dim), (keys, problem.heads_kv, problem.head_dim_v)
    return [q, k, v, out] * (2 if problem.op == "backward" else 1)


def _layout(problem: AttentionProblem, config: Config) -> Extra:
    """Tensors that are copied to change the order of their axes: those in which the order makes a difference."""
    layout = config.get("layout")

    def moves(length: int, heads: int) -> bool:
        if layout == "BNSD":
            return length > 1 and heads > 1
        return layout == "SBH" and problem.batch > 1 and length > 1

    element = problem.torch_dtype.itemsize
    moved = [length * heads * dim for length, heads, dim in _tensors(problem) if moves(length, heads)]
    return Extra(2.0 * element * problem.batch * sum(moved), len(moved))


def _padding(problem: AttentionProblem, step: int) -> Extra:
    """Tensors that are copied to have the one head dim that the operator takes."""
    if step == 1:
        return Extra()
    dim = -(-max(problem.head_dim, problem.head_dim_v) // step) * step
    element = problem.torch_dtype.itemsize
    padded = [(length * heads, own) for length, heads, own in _tensors(problem) if own != dim]
    return Extra(float(element * problem.batch * sum(count * (own + dim) for count, own in padded)), len(padded))


def _scores(problem: AttentionProblem) -> Extra:
    """Masks and biases that are written out for every call."""
    extra = Extra()
    if problem.mask:
        made = [OF_MASK] if problem.band.full else [OF_MASK, OF_BAND_IN_MASK]
        extra += Extra(float(masks.mask_bytes(problem) * sum(passes for passes, _ in made)), sum(n for _, n in made))
    if size := _pse_bytes(problem):
        made = [OF_PSE, OF_ALIBI_IN_PSE] if problem.alibi else [OF_PSE]
        extra += Extra(float(size * sum(passes for passes, _ in made)), sum(n for _, n in made))
    return extra


def _gathering(problem: AttentionProblem, config: Config, reads_pages: bool) -> Extra:
    """Keys that are copied side by side because the operator does not read them where they lie."""
    if (reads_pages or problem.layout != "paged") and config.get("keys", "in_place") == "in_place":
        return Extra()
    element = problem.torch_dtype.itemsize
    of_cache = element * problem.batch * problem.seqlen_k * problem.heads_kv * (problem.head_dim + problem.head_dim_v)
    bound = KIB * config.integer("gather")
    parts = max(1, math.ceil(of_cache / bound)) if bound else 1
    results = element * problem.batch * problem.seqlen_q * problem.heads_q * problem.head_dim_v
    merging = Extra(float((parts + 1) * results), OF_MERGED) if parts > 1 else Extra()
    # Each part but the last is one more run of the operator.
    return Extra(2.0 * of_cache, parts * OF_GATHERED + parts - 1) + merging
