"""The host's C++ compiler, and what it is told in each mode."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from faops.backends.cuda_raw.emulator.errors import EmulatorError

CANDIDATES = ("g++", "clang++")
COMPILE_SECONDS = 300.0

# Plain IEEE arithmetic but for a multiplication and an addition that may become one operation, as on the GPU.
COMMON = ("-std=c++17", "-march=native", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden", "-fno-math-errno",
          "-ffp-contract=fast", "-pthread")  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """How a kernel is built: flags of its own file, definitions of the runtime, and whether a process runs it."""

    kernel_flags: tuple[str, ...]
    runtime_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    process: bool


_THREAD = ("-fsanitize=thread", "-g1")
_ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")
# A loop turned into a call of memset would be seen by the sanitizer as an access of the runtime.
_PLAIN_LOOPS = ("-fno-builtin", "-fno-tree-loop-distribute-patterns", "-O2")

MODES: dict[str, Mode] = {
    "run": Mode(("-O1",), ("-O3",), ("-shared",), False),
    "counters": Mode(("-O1",), ("-O2", "-DEMULATOR_COUNTERS"), ("-shared",), False),
    "thread": Mode(("-O1", *_THREAD), ("-DEMULATOR_THREAD_SANITIZER", *_PLAIN_LOOPS), ("-fsanitize=thread",), True),
    "address": Mode(
        ("-O1", *_ADDRESS),
        ("-DEMULATOR_ADDRESS_SANITIZER", *_PLAIN_LOOPS),
        ("-fsanitize=address,undefined",),
        True,
    ),
}


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: the command that calls it, and a text that changes with it and with the processor."""

    command: tuple[str, ...]
    identity: str

    def run(self, arguments: list[str], what: str) -> None:
        """Call it. Raises EmulatorError with what it printed."""
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmulatorError(f"{shlex.join(self.command)} cannot compile {what}: {error}") from None
        if done.returncode:
            raise EmulatorError(f"{shlex.join(self.command)} does not compile {what}:\n{done.stderr.strip()}")


def missing() -> str | None:
    """Why there is no compiler here; None where there is one."""
    try:
        find()
    except EmulatorError as error:
        return str(error)
    return None


def find() -> Compiler:
    """The compiler that CXX names, else g++, else clang++. Raises EmulatorError where there is none that works."""
    return _find(os.environ.get("CXX", ""))


@functools.cache
def _find(named: str) -> Compiler:
    if named:
        command = tuple(shlex.split(named))
        if not command or not shutil.which(command[0]):
            raise EmulatorError(f"CXX is {named!r}, which is no program here; the emulator needs a C++ compiler")
        return Compiler(command, _identity(command))
    for candidate in CANDIDATES:
        if shutil.which(candidate):
            return Compiler((candidate,), _identity((candidate,)))
    raise EmulatorError(f"no C++ compiler for the emulator: neither {' nor '.join(CANDIDATES)} is on the PATH")


def _identity(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulatorError(f"{shlex.join(command)} --version fails: {error}") from None
    if done.returncode:
        raise EmulatorError(f"{shlex.join(command)} --version fails:\n{done.stderr.strip()}")
    return f"{shlex.join(command)}\n{done.stdout}\n{platform.machine()}\n{_processor()}"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
