"""How much of a vector core's unified buffer a kernel in linalg needs, from what is alive at each of its operations.

An estimate, made before CANN's compiler has fused, ordered and placed anything. Every value that the vector cores make
or read has a buffer from where it is made to where it is last read. An operation that goes element by element may write
over an operand that ends there. A tensor filled with one number has none, nor has what only the cube unit reads.
"""

from __future__ import annotations

from collections.abc import Iterable

from faops.backends.triton.ascend.gates.linalg import Block, Operation, size_bytes
from faops.backends.triton.ascend.space import VECTOR_CORES

PRODUCT, CAST = "linalg.matmul", "arith.truncf"
OF_CUBE = (PRODUCT, "linalg.transpose")
NO_BUFFER = ("linalg.fill", "tensor.empty", "linalg.transpose", "memref.alloc", "memref.subview",
             "memref.reinterpret_cast")  # fmt: skip


def unified_bytes(function: Operation, multibuffer: bool) -> int:
    """Bytes of the unified buffer of one vector core, which has its share of the rows."""
    sizes = _sizes(function)
    most = _peak(function.blocks[0], frozenset(), sizes)
    twice = max((_moved(loop, sizes) for loop in loops(function)), default=0) if multibuffer else 0
    return -(-(most + twice) // VECTOR_CORES)


def loops(function: Operation) -> list[Operation]:
    """The loops over keys: those that multiply and hold no other loop."""
    found = [operation for operation in function.walk() if operation.name == "scf.for"]
    return [
        loop
        for loop in found
        if any(inner.name == PRODUCT for inner in loop.walk())
        and sum(one.name == "scf.for" for one in loop.walk()) == 1
    ]


def _sizes(function: Operation) -> dict[int, int]:
    """Bytes of the one result of each operation by its id; 0 where it has no buffer of a vector core."""
    readers: dict[int, list[str]] = {}
    _find_readers(function.blocks[0], {}, readers)
    found = {}
    for operation in function.walk():
        cube = readers.get(id(operation)) and all(name in OF_CUBE for name in readers[id(operation)])
        loaded_for_cube = operation.name == "bufferization.to_tensor" and cube
        has = bool(operation.results) and operation.name not in NO_BUFFER and not loaded_for_cube
        found[id(operation)] = size_bytes(operation.type) if has else 0
    return found


def _find_readers(block: Block, outer: dict[str, Operation], readers: dict[int, list[str]]) -> None:
    """The names of the operations that read the result of each."""
    made = dict(outer)
    for operation in block.operations:
        for name in operation.operands:
            if name in made:
                readers.setdefault(id(made[name]), []).append(operation.name)
        for inner in operation.blocks:
            _find_readers(inner, made, readers)
        made.update((name, operation) for name in operation.results)


def _peak(block: Block, after: frozenset[str], sizes: dict[int, int], known: dict[str, int] | None = None) -> int:
    """Most bytes alive at once in a block, the values ``after`` it included."""
    bytes_of = dict(known or {})
    for operation in block.operations:
        bytes_of.update(dict(zip(operation.results, _result_sizes(operation, sizes, bytes_of))))
    alive, most = set(after), 0
    for operation in reversed(block.operations):
        read = _read(operation)
        through = (alive - set(operation.results)) | read
        for inner in operation.blocks if operation.name.startswith("scf.") else ():
            entered = dict(zip(inner.arguments, [0, *_carried(operation, bytes_of)]))
            most = max(most, _peak(inner, frozenset(through - set(operation.operands)), sizes, {**bytes_of, **entered}))
        here = sum(bytes_of.get(name, 0) for name in alive | set(operation.results))
        ending = sum(bytes_of.get(name, 0) for name in read - alive)
        most = max(most, here + max(0, ending - _reused(operation, ending, bytes_of)))
        alive = through
    return most


def _result_sizes(operation: Operation, sizes: dict[int, int], bytes_of: dict[str, int]) -> list[int]:
    if operation.name == "scf.for":
        return _carried(operation, bytes_of)
    return [sizes[id(operation)]] * len(operation.results)


def _carried(loop: Operation, bytes_of: dict[str, int]) -> list[int]:
    """Bytes of what a loop hands from round to round: buffers, whatever they were filled with at first."""
    _, separator, kinds = loop.text.rpartition("->")
    return [size_bytes(f"tensor<{kind}") for kind in kinds.split("tensor<")[1:]] if separator else []


def _read(operation: Operation) -> set[str]:
    """What an operation and those inside it read and do not make themselves."""
    found = set(operation.operands)
    for block in operation.blocks:
        inside = set(block.arguments)
        for inner in block.operations:
            found |= _read(inner) - inside
            inside.update(inner.results)
    return found


def _reused(operation: Operation, ending: int, bytes_of: dict[str, int]) -> int:
    """Bytes of operands that end here and whose place the result may take."""
    if operation.name.startswith(("arith.", "math.", PRODUCT, "tensor.", "scf.")):
        return min(ending, sum(bytes_of.get(name, 0) for name in operation.results)) or ending * (
            operation.name.startswith("scf.")
        )
    return 0


def _moved(loop: Operation, sizes: dict[int, int]) -> int:
    """Bytes that come from memory or go to it in a round: products, weights for the cube unit, biases and masks."""
    names: Iterable[str] = (PRODUCT, CAST, "bufferization.to_tensor")
    return sum(sizes[id(operation)] for operation in loop.walk() if operation.name in names)
