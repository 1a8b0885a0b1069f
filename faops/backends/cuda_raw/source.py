"""The text a kernel is compiled from: its main file, the headers of csrc/ and two headers generated for one problem."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
ENTRY = "attention_forward"  # of the forward kernels

INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)

Constant = bool | int


@dataclass(frozen=True)
class Source:
    """Everything that a compiler needs to see, and nothing that depends on the machine."""

    name: str  # the main file is csrc/<name>.cu
    entry: str  # the extern "C" kernel function, which takes one Params by value
    headers: tuple[tuple[str, str], ...]  # (name, text) of every header, sorted
    text: str  # of the main file
    threads: int  # of a block

    def digest(self) -> str:
        """Hash of all the text, in hexadecimal digits."""
        return _digest(self)


@functools.lru_cache(maxsize=1024)
def _digest(source: Source) -> str:
    digest = hashlib.sha256(f"{source.name}\0{source.entry}\0{source.threads}\0".encode())
    for part in (source.text, *(piece for header in source.headers for piece in header)):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


@functools.cache
def _read(name: str) -> str:
    return (CSRC / name).read_text(encoding="utf-8")


@functools.cache
def _headers_of(main: str) -> tuple[tuple[str, str], ...]:
    """The headers in csrc/ that ``main`` includes, and those that they include. A generated one is not there."""
    found: dict[str, str] = {}
    waiting = INCLUDE.findall(_read(main))
    while waiting:
        name = waiting.pop()
        if name not in found and (CSRC / name).is_file():
            found[name] = _read(name)
            waiting += INCLUDE.findall(found[name])
    return tuple(found.items())


def specialization_header(constants: Mapping[str, Constant]) -> str:
    """C++ text that defines ``constants``, which the kernel's templates are chosen by."""
    lines = ["// What this kernel was specialised for.", "#pragma once"]
    for name, value in constants.items():
        if isinstance(value, bool):
            lines.append(f"constexpr bool {name} = {'true' if value else 'false'};")
        else:
            lines.append(f"constexpr int {name} = {value};")
    return "\n".join(lines) + "\n"


def make_source(
    name: str, constants: Mapping[str, Constant], params_header: str, threads: int, entry: str = ENTRY
) -> Source:
    """The source of kernel ``name`` specialised for ``constants``."""
    generated = (("params.cuh", params_header), ("specialization.cuh", specialization_header(constants)))
    headers = tuple(sorted((*_headers_of(f"{name}.cu"), *generated)))
    return Source(name, entry, headers, _read(f"{name}.cu"), threads)
