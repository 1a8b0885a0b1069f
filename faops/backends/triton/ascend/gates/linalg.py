"""Reading linalg as triton-adapter-opt prints it: operations, what they take and give, and the blocks inside them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BITS = {"i1": 1, "i8": 8, "i16": 16, "f16": 16, "bf16": 16, "i32": 32, "f32": 32, "i64": 64, "index": 64}

#  %87:3 = scf.for %arg48 = %78 to %81 step %c256_i32 iter_args(...) -> (...)  : i32 {
_OPERATION = re.compile(r"(?:(?P<results>%[\w:, %-]+?) = )?(?P<name>[a-z_]+\.[a-z_0-9]+|return|module)\b(?P<text>.*)")
_VALUE = re.compile(r"%[\w-]+(?:#\d+)?")
_SHAPED = re.compile(r"(?:tensor|memref)<((?:[\d?]+x)*)(\w+)")
_ARGUMENT = re.compile(r"(%[\w-]+)\s*:\s*([^,()]+(?:<[^>]*>)?)")


@dataclass
class Block:
    """Operations in their order, and the names that a block gives to what it is entered with."""

    arguments: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


@dataclass
class Operation:
    name: str  # "linalg.matmul"
    results: list[str]  # "%12", or "%12#0" and so on where there are several
    text: str  # what stands behind the name
    blocks: list[Block] = field(default_factory=list)

    @property
    def operands(self) -> list[str]:
        """The values it takes, in their order; the names that a loop gives to its own are not among them."""
        text = self.text
        if self.name == "scf.for":
            text = re.sub(r"%[\w-]+ = ", "", text)
        return _VALUE.findall(text)

    @property
    def type(self) -> str:
        """The type of its result, the last where there are several."""
        shaped = _SHAPED.findall(self.text)
        if self.name in ("memref.load", "tensor.extract"):
            return str(shaped[-1][1])
        kind = "".join(("tensor<", *shaped[-1], ">")) if shaped else self.text.rstrip(" {").rpartition(" ")[2]
        return kind.replace(element(kind), "i1") if self.name in ("arith.cmpf", "arith.cmpi") else kind

    def walk(self) -> Iterator[Operation]:
        """This operation and all inside it."""
        yield self
        for block in self.blocks:
            for operation in block.operations:
                yield from operation.walk()


def parse(text: str) -> Operation:
    """The function in ``text``. Raises ValueError for what is no linalg."""
    root = Block()
    stack: list[Block] = [root]
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line and not line.startswith(("#", "//")):
            _read(line, stack, number)
    found = [operation for top in root.operations for operation in top.walk() if operation.name == "func.func"]
    if len(found) != 1 or len(stack) != 1:
        raise ValueError(f"{len(found)} functions, one was expected")
    return found[0]


def _read(line: str, stack: list[Block], number: int) -> None:
    if line.startswith("}"):
        stack.pop()
        if line.startswith("} else"):
            _open(stack, Block())
        elif len(line) > 1:
            stack[-1].operations[-1].text += line[1:]
    elif line.startswith("^"):
        stack[-1].arguments = _VALUE.findall(line)
    elif line.startswith("("):  # the block of linalg.reduce has its arguments in front
        _open(stack, Block(_VALUE.findall(line)))
    else:
        found = _OPERATION.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} is no operation: {line}")
        operation = Operation(found["name"], _names(found["results"] or ""), found["text"])
        stack[-1].operations.append(operation)
        if line.endswith("{"):
            _open(stack, Block(_own_names(operation)))


def _open(stack: list[Block], block: Block) -> None:
    stack[-1].operations[-1].blocks.append(block)
    stack.append(block)


def _names(results: str) -> list[str]:
    """ "%87:3" is %87#0, %87#1 and %87#2."""
    found = []
    for name in filter(None, (part.strip() for part in results.split(","))):
        base, _, count = name.partition(":")
        found += [f"{base}#{index}" for index in range(int(count))] if count else [base]
    return found


def _own_names(operation: Operation) -> list[str]:
    """What a loop or function calls its counter and arguments."""
    if operation.name == "scf.for":
        return re.findall(r"(%[\w-]+) = ", operation.text)
    return [name for name, _ in _ARGUMENT.findall(operation.text)] if operation.name == "func.func" else []


def shape(kind: str) -> tuple[int, ...] | None:
    """The sizes of a tensor or buffer type, None of any other; a size that is not known is -1."""
    found = _SHAPED.search(kind)
    if found is None:
        return None
    return tuple(-1 if size == "?" else int(size) for size in found.group(1).split("x")[:-1])


def element(kind: str) -> str:
    """The type of an element: "f16" of "tensor<64x128xf16>"."""
    found = _SHAPED.search(kind)
    return found.group(2) if found else kind


def size_bytes(kind: str) -> int:
    """Bytes of a tensor or buffer whose sizes are known; 0 of anything else."""
    sizes = shape(kind)
    if sizes is None or -1 in sizes:
        return 0
    return math.prod(sizes) * BITS.get(element(kind), 0) // 8
