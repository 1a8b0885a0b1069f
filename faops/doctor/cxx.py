"""Looking for a C or C++ compiler, which several groups have a use for."""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from faops.doctor import probes
from faops.doctor.check import Result, ok, warn


def look(
    purpose: str, use: str, candidates: Sequence[str], named_fix: str = "", variable: Literal["CXX", "CC"] = "CXX"
) -> Result:
    """Ok with the compiler's own name if what ``variable`` names, or else one of ``candidates``, is there and runs.

    ``purpose`` and ``use`` say what it is for; ``named_fix`` mends a ``variable`` that names nothing.
    """
    language = "C++" if variable == "CXX" else "C"
    named = os.environ.get(variable)
    wanted = (named,) if named else candidates
    compiler = next((path for name in wanted if (path := probes.program(name))), None)
    if compiler is None:
        absent = f"{variable}={named} is not there" if named else f"none of {', '.join(candidates)} is installed"
        fix = named_fix if named and named_fix else install()
        return warn(f"no {language} compiler for {purpose}: {absent}", use, fix=fix)
    runs, said = probes.output_of([compiler, "--version"])
    if not runs:
        return warn(f"{compiler} does not run: {said}", use, fix=install())
    return ok(f"{language} compiler {said.splitlines()[0] if said else compiler}")


def missing_header() -> Path | None:
    """Python's own header, which extension modules include, where it is not there."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.is_file() else header


def install_headers() -> str:
    """The command that installs it."""
    return "xcode-select --install" if platform.system() == "Darwin" else "sudo apt-get install python3-dev"


def install() -> str:
    """The command that installs one."""
    return "xcode-select --install" if platform.system() == "Darwin" else "sudo apt-get install g++"
