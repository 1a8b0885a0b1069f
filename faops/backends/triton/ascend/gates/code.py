"""Gates on the Ascend kernel in linalg: what it is made of, how memory is read, what it needs of a core's buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from faops.backends.triton.ascend import space
from faops.backends.triton.ascend.compile import Linalg, compile_launch
from faops.backends.triton.ascend.gates import buffers
from faops.backends.triton.ascend.gates.cases import Case
from faops.backends.triton.ascend.gates.linalg import Operation, element, parse
from faops.backends.triton.launch import Launch
from faops.errors import FaopsError

# What is left of a kernel once triton-adapter-opt is through: nothing of Triton's own.
DIALECTS = ("arith", "bufferization", "func", "linalg", "math", "memref", "scf", "tensor", "return")
# The marks of memory that is read or written element by element.
SCATTERED = ("ExtractedLoadOrStore", "DiscreteMemAccess")
PRODUCTS = 2  # of a tile


@dataclass(frozen=True)
class GateResult:
    """What was found of a case. ``failures`` has a sentence for each gate it does not pass."""

    case: Case
    figures: dict[str, int | float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


def check_case(case: Case) -> GateResult:
    """Compile a case and check its code. What keeps it from being compiled is a failure."""
    launch, tensors = case.launch()
    try:
        compiled = compile_launch(launch, tensors)
    except FaopsError as error:
        return GateResult(case, failures=(str(error),))
    return check_linalg(case, launch, compiled)


def check_linalg(case: Case, launch: Launch, compiled: Linalg) -> GateResult:
    """Check what was compiled."""
    function = parse(compiled.text)
    loops = buffers.loops(function)
    unified = buffers.unified_bytes(function, bool(case.config["multibuffer"]))
    figures: dict[str, int | float] = {
        "operations": sum(1 for _ in function.walk()),
        "loops": len(loops),
        "unified": unified,
        "planned": space.unified_bytes(case.config, case.problem),
        "seconds": round(compiled.seconds, 2),
    }
    failures = [
        *_leftovers(function, compiled.text),
        *_products(function, loops, compiled.text),
        *_by_element(function),
        *_buffers(case, unified),
        *_grid(launch),
        *_fractals(case),
    ]
    return GateResult(case, figures, tuple(failures))


def _leftovers(function: Operation, text: str) -> list[str]:
    """Nothing of Triton's own is left, and no memory is read or written element by element."""
    foreign = sorted({one.name for one in function.walk() if one.name.partition(".")[0] not in DIALECTS})
    failures = [f"operations that are not linalg: {', '.join(foreign)}"] if foreign else []
    found = [mark for mark in SCATTERED if mark in text]
    return failures + ([f"memory is read or written element by element: {', '.join(found)}"] if found else [])


def _products(function: Operation, loops: list[Operation], text: str) -> list[str]:
    """Both products of every loop over keys are the cube unit's, and there are no others."""
    counts = [sum(one.name == buffers.PRODUCT for one in loop.walk()) for loop in loops]
    everywhere = sum(one.name == buffers.PRODUCT for one in function.walk())
    if not loops or set(counts) != {PRODUCTS} or everywhere != sum(counts):
        return [f"loops over keys have {counts} products and the kernel {everywhere}, {PRODUCTS} a loop expected"]
    if 'mix_mode = "mix"' not in text:
        return ["it is not compiled for cube and vector cores together"]
    return []


def _by_element(function: Operation) -> list[str]:
    """The vector unit compares no 32-bit integers, adds no 64-bit ones and spreads no bits, but element by element."""
    failures = []
    for one in function.walk():
        operand = one.text.rpartition(":")[2]
        if one.name == "arith.cmpi" and "tensor<" in operand and ("xi32>" in operand or "xi64>" in operand):
            failures.append(f"integers are compared element by element: {one.name}{one.text}")
        if one.name in ("arith.addi", "arith.subi", "arith.muli") and "xi64>" in operand:
            failures.append(f"64-bit integers are computed element by element: {one.name}{one.text}")
        if one.name == "linalg.broadcast" and element(one.type) == "i1":
            failures.append(f"bits are spread element by element: {one.name}{one.text}")
    return failures


def _buffers(case: Case, unified: int) -> list[str]:
    planned = space.unified_bytes(case.config, case.problem)
    failures = []
    if unified > planned:
        failures.append(f"{unified} bytes of a unified buffer are alive, {planned} were planned for")
    if unified > space.UNIFIED_BYTES:
        failures.append(f"{unified} bytes of a unified buffer are alive, it has {space.UNIFIED_BYTES}")
    return failures


def _grid(launch: Launch) -> list[str]:
    programs = math.prod(launch.grid)
    if not 1 <= programs <= space.MOST_PROGRAMS or launch.grid[1:] != (1, 1):
        return [f"the grid is {launch.grid}, one axis of at most {space.MOST_PROGRAMS} programs expected"]
    return []


def _fractals(case: Case) -> list[str]:
    sizes = [case.config.integer(name) for name in ("block_m", "block_n")]
    if any(size % space.FRACTAL for size in sizes):
        return [f"a tile has {sizes[0]} rows and {sizes[1]} keys, multiples of {space.FRACTAL} expected"]
    return []
