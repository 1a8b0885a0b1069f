"""Runs a kernel in linalg on NumPy arrays, so that what triton-ascend compiled is held to the oracle without an NPU.

Memory is checked where it is touched: a view that leaves its tensor is an error, and what was not written is NaN.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from faops.backends.triton.ascend.gates.linalg import Block, Operation, element, shape

DTYPES = {"f16": np.float16, "f32": np.float32, "i1": np.bool_, "i8": np.int8, "i32": np.int32, "i64": np.int64}
NOTHING = {"f": np.nan, "i": 99, "b": True}  # what memory holds before it is written

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "slt": operator.lt, "sle": operator.le, "sgt": operator.gt, "sge": operator.ge, "eq": operator.eq,
    "ne": operator.ne, "olt": operator.lt, "ole": operator.le, "ogt": operator.gt, "oge": operator.ge,
    "oeq": operator.eq, "une": operator.ne,
}  # fmt: skip
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "addi": operator.add, "subi": operator.sub, "muli": operator.mul, "minsi": min, "maxsi": max,
    "andi": operator.and_, "ori": operator.or_, "addf": operator.add, "subf": operator.sub, "mulf": operator.mul,
    "divf": operator.truediv, "maxnumf": np.fmax, "minnumf": np.fmin,
    "divsi": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "remsi": lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {"exp": np.exp, "exp2": np.exp2, "log": np.log, "absf": np.abs}


@dataclass
class View:
    """A buffer, or a part of one."""

    base: np.ndarray[Any, Any]  # one axis
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray[Any, Any]:
        """Its elements, which write through."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides))
        if 0 in self.sizes:
            return np.empty(self.sizes, self.base.dtype)
        assert min(self.sizes) > 0 and 0 <= self.offset <= last < self.base.size, f"out of bounds: {self}"
        item = self.base.itemsize
        return np.lib.stride_tricks.as_strided(
            self.base[self.offset :], self.sizes, tuple(stride * item for stride in self.strides)
        )

    def __str__(self) -> str:
        return f"{self.sizes} by {self.strides} at {self.offset} of {self.base.size}"


def run(function: Operation, arguments: Sequence[Any], programs: int) -> None:
    """Run every program of a grid. ``arguments`` are arrays of one axis and numbers, as the kernel takes them."""
    names = function.blocks[0].arguments
    views = [View(a, 0, a.shape, (1,)) if isinstance(a, np.ndarray) else a for a in arguments]
    for program in range(programs):
        # A lock and a work space come first; the grid and the place in it last.
        values = [None, None, *views, programs, 1, 1, program, 0, 0]
        assert len(values) == len(names)
        with np.errstate(all="ignore"):
            _Frame(dict(zip(names, values))).run(function.blocks[0])


class _Frame:
    """The values of a block while it runs."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def run(self, block: Block) -> list[Any]:
        """Run the operations of a block in their order, and return what it yields."""
        for one in block.operations:
            if one.name in ("scf.yield", "linalg.yield", "return"):
                return self.operands(one)
            results = self.evaluate(one)
            if one.results:
                found = results if isinstance(results, list) else [results]
                self.values.update(zip(one.results, found))
        return []

    def operands(self, one: Operation) -> list[Any]:
        return [self.values[name] for name in one.operands]

    def evaluate(self, one: Operation) -> Any:
        dialect, _, name = one.name.partition(".")
        if dialect == "arith" and name in BINARY:
            return _as_type(BINARY[name](*self.operands(one)), one.type)
        if dialect == "math":
            return _as_type(UNARY[name](*self.operands(one)), one.type)
        handler = getattr(self, f"{dialect}_{name}", None)
        assert handler is not None, f"{one.name} is not known"
        return handler(one)

    # ------------------------------------------------------------------------------------------ arith

    def arith_constant(self, one: Operation) -> Any:
        value, kind = re.fullmatch(r"\s*(\S+) : (\w+)", one.text).groups()  # type: ignore[union-attr]
        if kind.startswith("f"):
            if value.startswith("0x"):
                return np.array(int(value, 16), f"u{int(kind[1:]) // 8}").view(DTYPES[kind])[()]
            return DTYPES[kind](value)
        return {"true": True, "false": False}[value] if kind == "i1" and value[0] in "tf" else int(value)

    def arith_cmpi(self, one: Operation) -> Any:
        return COMPARE[one.text.split(",")[0].strip()](*self.operands(one))

    arith_cmpf = arith_cmpi

    def arith_select(self, one: Operation) -> Any:
        condition, yes, no = self.operands(one)
        return np.where(condition, yes, no) if isinstance(condition, np.ndarray) else yes if condition else no

    def convert(self, one: Operation) -> Any:
        return _as_type(self.operands(one)[0], one.type)

    arith_extsi = arith_trunci = arith_index_cast = arith_sitofp = arith_truncf = arith_extf = convert

    # ------------------------------------------------------------------------------------------ tensors

    def tensor_empty(self, one: Operation) -> Any:
        return _nothing(one.type)

    def tensor_extract_slice(self, one: Operation) -> Any:
        source, (offsets, sizes, strides) = self.operands(one)[0], self.lists(one)
        assert set(strides) == {1}
        assert all(first >= 0 and first + size <= most for first, size, most in zip(offsets, sizes, source.shape))
        return source[tuple(slice(first, first + size) for first, size in zip(offsets, sizes))]

    def tensor_collapse_shape(self, one: Operation) -> Any:
        return self.operands(one)[0].reshape(shape(one.type))

    tensor_expand_shape = tensor_collapse_shape

    def tensor_insert(self, one: Operation) -> Any:
        value, into, *at = self.operands(one)
        copy = into.copy()
        copy[tuple(at)] = value
        return copy

    def tensor_extract(self, one: Operation) -> Any:
        source, *at = self.operands(one)
        return source[tuple(at)]

    # ------------------------------------------------------------------------------------------ linalg

    def linalg_fill(self, one: Operation) -> Any:
        value, into = self.operands(one)
        if isinstance(into, View):
            into.array()[...] = value
            return None
        return np.full_like(into, value)

    def linalg_broadcast(self, one: Operation) -> Any:
        source, into = self.operands(one)
        return np.broadcast_to(np.expand_dims(source, _dimensions(one)), into.shape)

    def linalg_transpose(self, one: Operation) -> Any:
        assert "permutation = [1, 0]" in one.text
        return self.operands(one)[0].T

    def linalg_reduce(self, one: Operation) -> Any:
        source, start = self.operands(one)
        body = one.blocks[0].operations[0].name
        combine = {"arith.addf": np.add, "arith.maxnumf": np.fmax}[body]
        return combine(combine.reduce(source, axis=_dimensions(one)), start)

    def linalg_matmul(self, one: Operation) -> Any:
        left, right, start = self.operands(one)
        assert not np.isnan(start).any() and left.dtype == right.dtype
        return left.astype(np.float32) @ right.astype(np.float32) + start

    def linalg_generic(self, one: Operation) -> Any:
        """The places of a row, the one use that a kernel makes of it."""
        assert [inner.name for inner in one.blocks[0].operations] == [
            "linalg.index",
            "arith.index_cast",
            "linalg.yield",
        ]
        return np.arange(*shape(one.type), dtype=np.int32)  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------ memory

    def lists(self, one: Operation) -> list[tuple[int, ...]]:
        """The lists of numbers in front of the types: offsets, sizes and strides."""
        text = re.split(r" : (?:memref|tensor)<", one.text)[0]
        return [
            tuple(self.values[item] if item.startswith("%") else int(item) for item in found.split(", ") if item)
            for found in re.findall(r"\[([^\]]*)\]", text)
        ]

    def memref_reinterpret_cast(self, one: Operation) -> View:
        (offset,), sizes, strides = self.lists(one)
        source = self.operands(one)[0]
        return View(source.base, offset, sizes, strides)

    def memref_subview(self, one: Operation) -> View:
        offsets, sizes, strides = self.lists(one)
        source = self.operands(one)[0]
        assert set(strides) == {1} and all(0 <= size <= most for size, most in zip(sizes, source.sizes))
        first = source.offset + sum(at * stride for at, stride in zip(offsets, source.strides))
        return View(source.base, first, sizes, source.strides)

    def memref_alloc(self, one: Operation) -> View:
        made = _nothing(one.type)
        return View(made.reshape(-1), 0, made.shape, tuple(stride // made.itemsize for stride in made.strides))

    def memref_copy(self, one: Operation) -> None:
        source, into = self.operands(one)
        into.array()[...] = source.array()

    def memref_load(self, one: Operation) -> Any:
        source, *at = self.operands(one)
        return _as_type(source.array()[tuple(at)], one.type)

    def bufferization_to_tensor(self, one: Operation) -> Any:
        return self.operands(one)[0].array().copy()

    def bufferization_materialize_in_destination(self, one: Operation) -> None:
        source, into = self.operands(one)
        into.array()[...] = source

    # ------------------------------------------------------------------------------------------ control

    def scf_for(self, one: Operation) -> list[Any]:
        first, last, step, *carried = self.operands(one)
        for index in range(first, last, step):
            names = one.blocks[0].arguments
            inner = _Frame({**self.values, **dict(zip(names, [index, *carried]))})
            carried = inner.run(one.blocks[0])
        return carried

    def scf_if(self, one: Operation) -> list[Any]:
        (condition,) = self.operands(one)
        chosen = one.blocks[0] if condition else one.blocks[1] if len(one.blocks) > 1 else Block()
        return _Frame(dict(self.values)).run(chosen)


def _nothing(kind: str) -> np.ndarray[Any, Any]:
    dtype = np.dtype(DTYPES[element(kind)])
    return np.full(shape(kind), NOTHING[dtype.kind], dtype)  # type: ignore[arg-type]


def _as_type(value: Any, kind: str) -> Any:
    """``value`` in the type that an operation gives."""
    name = element(kind)
    if isinstance(value, np.ndarray):
        return value.astype(DTYPES[name])
    return DTYPES[name](value) if name.startswith("f") else int(value)


def _dimensions(one: Operation) -> tuple[int, ...]:
    found = re.search(r"dimensions = \[([\d, ]+)\]", one.text)
    assert found is not None
    return tuple(int(number) for number in found.group(1).split(","))
