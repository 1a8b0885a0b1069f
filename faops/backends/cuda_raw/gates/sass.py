"""Machine code as text: disassembles a cubin with nvdisasm and counts its instructions."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faops.errors import UnavailableError

TOOL = "nvdisasm"
INSTALL = "pip install nvidia-cuda-nvdisasm"
TOOL_SECONDS = 120.0

_LABEL = re.compile(r"^(\.L_\w+):")
_FUNCTION = re.compile(r"^\.text\.(\w+):")
# /*0d50*/   @!P0 BRA `(.L_x_0) ;
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_NEVER = ("!PT", "!UPT")  # predicates of padding that is never executed
_BRANCH_LABEL = re.compile(r"\(?(\.L_\w+)\)?")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_PLAIN_WIDTH = 4


@dataclass(frozen=True)
class Instruction:
    """``opcode`` has its modifiers, as "LDG.E.128.CONSTANT", but no predicate."""

    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def access_bytes(self) -> int:
        """What one thread reads or writes, for an instruction that accesses memory."""
        modifiers = self.opcode.split(".")[1:]
        if self.base == "LDSM":  # "LDSM.16.M88.4": four matrices, and of each a thread gets a word
            return _PLAIN_WIDTH * int(modifiers[-1]) if modifiers[-1].isdigit() else _PLAIN_WIDTH
        return next((_WIDTHS[modifier] for modifier in modifiers if modifier in _WIDTHS), _PLAIN_WIDTH)


@dataclass(frozen=True)
class Loop:
    """Instructions ``first`` to ``last`` of a function, the branch back included."""

    first: int
    last: int


@dataclass(frozen=True)
class Function:
    """One function of a cubin, in the order of its code."""

    name: str
    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]  # outer ones first

    def opcodes(self, loop: Loop | None = None) -> Counter[str]:
        """How often each opcode stands in the function, or in one of its loops."""
        return Counter(instruction.opcode for instruction in self.part(loop))

    def count(self, base: str, loop: Loop | None = None) -> int:
        """Instructions whose opcode without modifiers is ``base``."""
        return sum(instruction.base == base for instruction in self.part(loop))

    def widths(self, base: str, loop: Loop | None = None) -> Counter[int]:
        """Accesses with opcode ``base`` by their bytes a thread."""
        return Counter(found.access_bytes for found in self.part(loop) if found.base == base)

    def part(self, loop: Loop | None) -> tuple[Instruction, ...]:
        """The loop's instructions; all where it is None."""
        return self.instructions if loop is None else self.instructions[loop.first : loop.last + 1]

    def loop_with(self, base: str) -> Loop | None:
        """The outermost loop with an instruction ``base``; of several the one with most of them."""
        counts = {loop: self.count(base, loop) for loop in self.loops}
        return max((loop for loop in self.loops if counts[loop]), key=lambda loop: counts[loop], default=None)


def missing() -> str:
    """Why nothing can be disassembled; "" if it can."""
    if find() is None:
        return f"{TOOL} is neither among the installed packages nor on the PATH: {INSTALL}"
    return ""


@functools.cache
def find() -> Path | None:
    """The newest nvdisasm of pip's packages, else the one on the PATH, else Triton's."""
    found = sorted(_of_packages(), key=lambda path: path.parent.parent.name, reverse=True)
    if found:
        return found[0]
    if on_path := shutil.which(TOOL):
        return Path(on_path)
    spec = importlib.util.find_spec("triton")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return next((path for root in roots for path in [Path(root, "backends/nvidia/bin", TOOL)] if path.exists()), None)


def _of_packages() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec else []:
        yield from Path(root).glob(f"*/bin/{TOOL}")


@functools.cache
def version() -> str:
    """Version of the disassembler, such as "13.0.88". Raises UnavailableError without one."""
    found = re.search(r"\bV(\d[\d.]*)", _run("--version"))
    return found.group(1) if found else "unknown"


def disassemble(image: bytes) -> dict[str, Function]:
    """The functions of a cubin by name.

    Raises UnavailableError where there is no nvdisasm, or one that is too old for the cubin's architecture.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        return parse(_run("-c", file.name))


def _run(*arguments: str) -> str:
    tool = find()
    if tool is None:
        raise UnavailableError(missing())
    try:
        done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, timeout=TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{tool} does not run: {error}") from None
    if done.returncode:
        raise UnavailableError(f"{tool} fails: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def parse(text: str) -> dict[str, Function]:
    """The functions in what ``nvdisasm -c`` prints."""
    functions: dict[str, Function] = {}
    name, instructions, labels = "", list[Instruction](), dict[str, int]()
    for line in [*text.splitlines(), ".text.end:"]:
        if found := _FUNCTION.match(line):
            if name:
                functions[name] = Function(name, tuple(instructions), _loops(instructions, labels))
            name, instructions, labels = found.group(1), [], {}
        elif found := _LABEL.match(line):
            labels[found.group(1)] = len(instructions)
        elif (found := _INSTRUCTION.search(line)) and found.group(1) not in _NEVER:
            instructions.append(Instruction(found.group(2), found.group(3).strip()))
    return functions


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> tuple[Loop, ...]:
    """From each label that a later instruction branches to, up to the last such branch. One that branches to itself is
    not a loop but what stops the processor from running on behind the function's end."""
    ends: dict[int, int] = {}
    for index, instruction in enumerate(instructions):
        if instruction.base != "BRA" or not (found := _BRANCH_LABEL.search(instruction.operands)):
            continue
        start = labels.get(found.group(1), len(instructions))
        if start < index:
            ends[start] = max(index, ends.get(start, 0))
    return tuple(sorted((Loop(*loop) for loop in ends.items()), key=lambda loop: (loop.first, -loop.last)))
