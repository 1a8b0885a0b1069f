"""Tensors that an operator read and wrote, from what torch.profiler recorded with ``record_shapes=True``.

It records inputs only. Outputs follow from them for the operators that matter here.
"""

from __future__ import annotations

import ast
from typing import Any

from faops.profile.events import Kind, Operand, Shape

# Names of dtypes in "Input type" and their bytes an element.
ITEMSIZES = {
    "float": 4, "double": 8, "c10::Half": 2, "c10::BFloat16": 2, "c10::Float8_e4m3fn": 1, "c10::Float8_e5m2": 1,
    "bool": 1, "unsigned char": 1, "signed char": 1, "short int": 2, "int": 4, "long int": 8, "long": 8,
}  # fmt: skip


def inputs_of(arguments: Any) -> tuple[Operand, ...]:
    """The tensors that an operator was given, scalars left out; () where no shapes were recorded."""
    if not isinstance(arguments, dict):
        return ()
    shapes, types = arguments.get("Input Dims"), arguments.get("Input type")
    if not isinstance(shapes, list) or not isinstance(types, list):
        return ()
    strides = arguments.get("Input Strides")
    found = []
    for index, (shape, dtype) in enumerate(zip(shapes, types)):
        dims = _dims(shape)
        if dims and dtype in ITEMSIZES:
            steps = _dims(strides[index]) if isinstance(strides, list) and index < len(strides) else None
            found.append(Operand(dims, dtype, ITEMSIZES[dtype], steps if steps and len(steps) == len(dims) else None))
    return tuple(found)


def _dims(value: Any) -> Shape | None:
    """A recorded shape or strides; None for what is no list of numbers, such as that of a list of tensors."""
    if isinstance(value, list) and all(isinstance(size, int) for size in value):
        return tuple(value)
    return None


def outputs_of(name: str, kind: Kind, inputs: tuple[Operand, ...], arguments: Any) -> tuple[Operand, ...]:
    """What an operator made of its inputs; () where that cannot be told."""
    if kind is Kind.PRODUCT:
        return _product(name, inputs)
    if kind is Kind.MASK and (made := _made(arguments)):
        return made
    if kind is Kind.FUSED or not inputs:
        return ()
    if kind is Kind.COPY:
        return inputs[:1]
    shape = broadcast([operand.shape for operand in inputs])
    like = inputs[-1] if name.startswith("aten::where") else inputs[0]
    return (Operand(shape, like.dtype, like.itemsize),) if shape is not None else ()


def _product(name: str, inputs: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """The result of bmm and mm, whose inputs are two matrices, and of baddbmm and addmm, which add a third first."""
    left, right = factors(name, inputs)
    if left is None or right is None:
        return ()
    return (Operand((*left.shape[:-1], right.shape[-1]), left.dtype, left.itemsize),)


def factors(name: str, inputs: tuple[Operand, ...]) -> tuple[Operand | None, Operand | None]:
    """The two matrices that an operator multiplies; (None, None) where shapes are missing."""
    first = 1 if "addbmm" in name or "addmm" in name else 0
    if len(inputs) < first + 2:
        return None, None
    left, right = inputs[first], inputs[first + 1]
    return (left, right) if len(left.shape) >= 2 and len(right.shape) >= 2 else (None, None)


def _made(arguments: Any) -> tuple[Operand, ...]:
    """The tensor of an operator that is given a shape, such as ones and full."""
    concrete = arguments.get("Concrete Inputs") if isinstance(arguments, dict) else None
    for text in concrete if isinstance(concrete, list) else ():
        if isinstance(text, str) and text.startswith("["):
            try:
                return (Operand(tuple(int(size) for size in ast.literal_eval(text))),)
            except (ValueError, SyntaxError, TypeError):
                return ()
    return ()


def broadcast(shapes: list[Shape]) -> Shape | None:
    """The shape that all broadcast to; None where they do not go together."""
    length = max(map(len, shapes))
    result = [1] * length
    for shape in shapes:
        for axis, size in enumerate(shape, length - len(shape)):
            if size != 1:
                if result[axis] not in (1, size):
                    return None
                result[axis] = size
    return tuple(result)
