"""Compiling with NVRTC through CuPy's binding: no driver, no toolkit and no card is needed.

CuPy is imported at first use, since that takes a third of a second.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faops.backends.cuda_raw import targets
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Kind, Target, Version
from faops.errors import CompileError

INSTALL = "pip install 'faops[cuda13]', or 'faops[cuda12]' for a driver older than 580"
WHEELS = {"cupy-cuda13x": "nvidia-cuda-nvrtc", "cupy-cuda12x": "nvidia-cuda-nvrtc-cu12"}  # CuPy, and its NVRTC
SHOWN_ERRORS = 3
CONTEXT_LINES = 3


@dataclass(frozen=True)
class Compiled:
    """Code and what its compiler says of it. Sizes in bytes; None where the compiler does not say, as for PTX.

    ``seconds`` is the time NVRTC took, also for one that comes ``from_cache``.
    """

    image: bytes
    target: Target
    log: str
    seconds: float
    registers: int | None = None  # a thread
    spill_store_bytes: int | None = None  # a thread, summed over all functions, as are loads
    spill_load_bytes: int | None = None
    stack_bytes: int | None = None  # a thread
    static_shared_bytes: int | None = None  # a block
    constant_bytes: int | None = None
    from_cache: bool = False

    @property
    def kind(self) -> Kind:
        return self.target.kind


# ---------------------------------------------------------------------------------------------- what is there


def installed() -> str:
    """Why there is no CuPy to compile with; "" if there is one. Cheap: imports nothing."""
    if importlib.util.find_spec("cupy_backends") is None:
        return f"CuPy is not installed: {INSTALL}"
    return ""


def packaged_version() -> Version | None:
    """Version of the NVRTC that pip installed for CuPy; None where there is none, or it comes from a toolkit."""
    for cupy, wheel in WHEELS.items():
        try:
            importlib.metadata.version(cupy)
            major, minor = importlib.metadata.version(wheel).split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


def probe() -> str:
    """Why NVRTC cannot be used; "" if it can. Loads it."""
    if reason := installed():
        return reason
    try:
        version()
        supported()
    except Exception as error:  # ImportError, OSError, RuntimeError or one of CuPy's own, as versions differ
        return f"CuPy is installed, but NVRTC cannot be loaded ({type(error).__name__}: {error}): {INSTALL}"
    return ""


def version() -> Version:
    """Version of NVRTC, such as (13, 0)."""
    major, minor = _binding().getVersion()
    return int(major), int(minor)


def version_text() -> str:
    return "{}.{}".format(*version())


def library_path() -> str:
    """Path of the NVRTC library that is loaded; "" where the system does not tell."""
    try:
        loaded = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"(/\S*/libnvrtc\.so\S*)$", loaded, re.MULTILINE)
    return found.group(1) if found else ""


def supported() -> tuple[int, ...]:
    """The architectures NVRTC compiles for, as numbers such as 86, in rising order."""
    return tuple(sorted(int(number) for number in _binding().getSupportedArchs()))


def target_of(arch: str) -> Target:
    """The target for a device of architecture ``arch``. Raises ArgumentError where no code can be made for it."""
    return targets.choose(arch, supported())


@functools.cache
def _binding() -> Any:
    return importlib.import_module("cupy_backends.cuda.libs.nvrtc")


# ---------------------------------------------------------------------------------------------- compiling


def options(target: Target) -> tuple[str, ...]:
    """What NVRTC is called with. Nothing in it depends on the machine."""
    return ("-std=c++17", f"-arch={target}", "--ptxas-options=-v")


def compile(source: Source, target: Target) -> Compiled:
    """Compile ``source`` for ``target``.

    Raises CompileError, which shows the first errors with the lines around them, when the text is wrong or needs
    more than the target has.
    """
    binding = _binding()
    start = time.perf_counter()
    program = binding.createProgram(
        source.text,
        _main_file(source),
        [text.encode() for _, text in source.headers],
        [name.encode() for name, _ in source.headers],
    )
    try:
        try:
            binding.compileProgram(program, options(target))
        except binding.NVRTCError as error:
            raise _compile_error(source, target, _log(binding, program) or str(error)) from None
        image = binding.getPTX(program) if target.kind == "ptx" else _whole(binding.getCUBIN(program))
        log = _log(binding, program)
    finally:
        binding.destroyProgram(program)
    figures = _figures(log, source.entry) if target.kind == "cubin" else {}
    return Compiled(image, target, log, time.perf_counter() - start, **figures)


def _main_file(source: Source) -> str:
    return f"{source.name}.cu"


def _log(binding: Any, program: int) -> str:
    """What compiler and assembler said; each ends its part with a zero."""
    return str(binding.getProgramLog(program)).replace("\0", "")


def _whole(image: bytes) -> bytes:
    """The ELF file with its last byte, a zero that the binding takes for the end of a text and leaves out."""
    of_programs, of_sections = struct.unpack_from("<QQ", image, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", image, 54)
    size = max(of_programs + program_size * programs, of_sections + section_size * sections)
    return image + b"\0" if len(image) == size - 1 else image


def _figures(log: str, entry: str) -> dict[str, Any]:
    """What the assembler says of the kernel ``entry``: the figures of Compiled, None for those it does not give."""
    stack = re.search(rf"Function properties for {entry}\s*\n\D*(\d+) bytes stack frame", log)
    used = re.search(rf"Compiling entry function '{entry}'.*?(Used \d+ registers.*?)$", log, re.DOTALL | re.MULTILINE)
    line = used.group(1) if used else ""
    return {
        "registers": _sum(r"Used (\d+) registers", line),
        "spill_store_bytes": _sum(r"(\d+) bytes spill stores", log),
        "spill_load_bytes": _sum(r"(\d+) bytes spill loads", log),
        "stack_bytes": _sum(r"(\d+) bytes cumulative stack size", line) or (int(stack.group(1)) if stack else None),
        "static_shared_bytes": (_sum(r"(\d+) bytes smem", line) or 0) if line else None,
        "constant_bytes": _sum(r"(\d+) bytes cmem", line),
    }


def _sum(pattern: str, text: str) -> int | None:
    found = re.findall(pattern, text)
    return sum(map(int, found)) if found else None


# ---------------------------------------------------------------------------------------------- errors


def _compile_error(source: Source, target: Target, log: str) -> CompileError:
    pattern = r"^(\S+\(\d+\): (?:catastrophic )?error\b.*|ptxas.*\b(?:error|fatal)\b.*)$"
    found = re.findall(pattern, log, re.MULTILINE) or log.strip().splitlines()
    errors = list(dict.fromkeys(found))  # a template repeats its errors each time it is used
    count = f"{len(errors)} {'error' if len(errors) == 1 else 'errors'}"
    lines = [f"{source.name} does not compile for {target} (NVRTC {version_text()}), {count}"]
    for error in errors[:SHOWN_ERRORS]:
        lines += [error, *_excerpt(source, error)]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"and {len(errors) - SHOWN_ERRORS} more")
    return CompileError("\n".join(lines), numbered(source), log)


def _excerpt(source: Source, error: str) -> list[str]:
    """The lines around the one that ``error`` names; [] where it names none."""
    found = re.match(r"(\S+)\((\d+)\):", error)
    text = dict(_files(source)).get(found.group(1)) if found else None
    if found is None or text is None:
        return []
    number, lines = int(found.group(2)), text.splitlines()
    first, last = max(1, number - CONTEXT_LINES), min(len(lines), number + CONTEXT_LINES)
    return [_numbered_line(at, lines[at - 1], ">" if at == number else " ") for at in range(first, last + 1)]


def numbered(source: Source) -> str:
    """All files of ``source``, the main one first, with a number before each line."""
    parts = []
    for name, text in _files(source):
        parts += [f"---- {name}", *(_numbered_line(at, line) for at, line in enumerate(text.splitlines(), 1))]
    return "\n".join(parts)


def _numbered_line(number: int, line: str, mark: str = " ") -> str:
    return f"{mark}{number:5d} | {line}"


def _files(source: Source) -> list[tuple[str, str]]:
    return [(_main_file(source), source.text), *source.headers]
