"""Micro-tests: a few lines of kernel for every wrapper of csrc/ptx.cuh, beside what numpy says they compute.

The same kernels run on a GPU and in the emulator; what a GPU answered is recorded (:mod:`.fixtures`) and held against
the emulator later.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from faops.backends.cuda_raw.source import CSRC, Source

Words = NDArray[np.uint32]
Kind = Literal["bits", "float32", "float16", "bfloat16"]

THREADS = 64  # two warps, so that what should stay within one can be seen to
SHARED_BYTES = 8192
ENTRY = "micro"
UNTOUCHED = 0xA5A5A5A5  # what `out` holds before the kernel runs
INFINITE = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}  # magnitude bits above these are NaN
SHOWN = 3

# Every body sees these names. `count` is a number of its own; the second struct member after the pointers.
FRAME = """#include "ptx.cuh"
struct Params {{
    const u32 *a, *b;
    u32* out;
    int which, count;
}};
KERNEL void LAUNCH_BOUNDS({threads}, 1) {entry}(const GRID_CONSTANT Params params) {{
    const int t = thread_index();
    const u32 base = shared_base();
    const u32 *a = params.a, *b = params.b;
    u32* out = params.out;
    float* out_float = reinterpret_cast<float*>(out);
    const int count = params.count;
    switch (params.which) {{
{cases}
    }}
}}
"""


@dataclass(frozen=True)
class Micro:
    """One micro-test: kernel statements, the words they read at ``a`` and ``b``, and the words expected at ``out``.

    ``kind`` is what the words hold; any NaN equals any other. ``allowed`` is the largest difference of each element
    (float32 only); None asks for the very same bits. ``arch`` is the lowest compute capability, times ten.
    """

    name: str
    body: str
    a: Words
    expected: Words
    b: Words = field(default_factory=lambda: np.zeros(1, dtype=np.uint32))
    kind: Kind = "bits"
    allowed: NDArray[np.float64] | None = None
    arch: int = 75
    grid: int = 1
    count: int = 0

    def digest(self) -> str:
        """Hash of all that decides the answer."""
        digest = hashlib.sha256(f"{self.body}\0{self.grid}\0{self.count}\0{THREADS}\0".encode())
        for words in (self.a, self.b):
            digest.update(words.astype("<u4").tobytes() + b"\0")
        return digest.hexdigest()[:16]

    def wrong(self, got: Words, expected: Words | None = None, slack: float = 1.0) -> str:
        """What is wrong with ``got``, the first differences in words; "" if nothing is.

        ``expected`` replaces this test's own, for a recorded answer; ``slack`` widens ``allowed``.
        """
        wanted = self.expected if expected is None else expected
        if got.shape != wanted.shape:
            return f"{got.size} words, expected {wanted.size}"
        ours, theirs = elements(got, self.kind), elements(wanted, self.kind)
        differ = ours != theirs
        if self.kind != "bits":
            differ &= ~(is_nan(ours, self.kind) & is_nan(theirs, self.kind))
        if self.allowed is not None:
            x, y = ours.view(np.float32).astype(np.float64), theirs.view(np.float32).astype(np.float64)
            with np.errstate(invalid="ignore"):
                differ &= ~(np.abs(x - y) <= slack * self.allowed)
        places = np.flatnonzero(differ)
        if not places.size:
            return ""
        shown = ", ".join(
            f"[{i}] {_show(ours[i], self.kind)} not {_show(theirs[i], self.kind)}" for i in places[:SHOWN]
        )
        return f"{places.size} of {ours.size} differ: {shown}"


def elements(words: Words, kind: Kind) -> NDArray[Any]:
    """The elements of ``words`` as unsigned numbers, the lower half of a word first."""
    return words.view(np.uint16) if kind in ("float16", "bfloat16") else words


def is_nan(bits: NDArray[Any], kind: Kind) -> NDArray[np.bool_]:
    sign = 1 << (8 * bits.itemsize - 1)
    result: NDArray[np.bool_] = (bits & (sign - 1)) > INFINITE[kind]
    return result


def _show(bits: Any, kind: Kind) -> str:
    digits = 2 * bits.itemsize
    if kind == "float32":
        return f"{float(bits.view(np.float32)):.9g} ({int(bits):0{digits}x})"
    return f"{int(bits):0{digits}x}"


def group_source(micros: Sequence[Micro]) -> Source:
    """One kernel that holds all of ``micros``; its parameter ``which`` is the index of the one to run."""
    cases = "\n".join(f"    case {index}: {{\n{micro.body}\n    }} break;" for index, micro in enumerate(micros))
    headers = (("ptx.cuh", wrappers_text()),)
    return Source("micro", ENTRY, headers, FRAME.format(threads=THREADS, entry=ENTRY, cases=cases), THREADS)


@functools.cache
def wrappers_text() -> str:
    return (CSRC / "ptx.cuh").read_text(encoding="utf-8")


def words_of(values: Any, dtype: Any) -> Words:
    """``values`` as ``dtype`` (float32, float16, uint16, uint8, ...), read as 32-bit words."""
    with np.errstate(over="ignore"):
        result: Words = np.ascontiguousarray(np.asarray(values).astype(dtype)).reshape(-1).view(np.uint32)
    return result


def bfloat16_bits(values: Any) -> NDArray[np.uint16]:
    """``values`` as float32 rounded to the nearest bfloat16, ties to even; NaN stays one."""
    single = np.asarray(values, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    result: NDArray[np.uint16] = np.where(np.isnan(single), np.uint64(0x7FFF), rounded).astype(np.uint16)
    return result


def random_words(seed: int, count: int) -> Words:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
