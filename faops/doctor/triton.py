"""Group triton: whether the Triton kernels can be compiled here, or are interpreted.

The backend is imported inside the checks, so that a defect in it is a finding and no crash of all of doctor.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

import torch

from faops.doctor import cxx, probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "triton"
COMPILERS = ("gcc", "clang")
COMPILE_SECONDS = 90.0  # importing torch and Triton takes most of it where the disk is slow
ANY_ARCH = "sm_80"  # where no card says which
UPGRADE = "pip install --upgrade 'faops[triton]'"
# Compiles in a process of its own: this one may interpret, and a compiler that crashes or hangs must not take it along.
COMPILE = "from faops.doctor import triton; triton.compile_sample('{arch}')"


def checks() -> list[Check]:
    return [
        Check("triton.version", GROUP, "Triton is installed and new enough", check_version),
        Check("triton.interpreter", GROUP, "kernels are compiled, not interpreted", check_interpreter),
        Check("triton.compiler", GROUP, "a C compiler and Python's headers for Triton's launcher", check_compiler),
        Check("triton.assembler", GROUP, "the assembler ptxas that Triton calls runs", check_assembler),
        Check("triton.cache", GROUP, "Triton's cache of compiled kernels can be written", check_cache),
        Check("triton.compile", GROUP, "a kernel compiles", check_compile, limit=1.2 * COMPILE_SECONDS, ahead=True),
    ]


def check_version() -> Result:
    from faops.backends.triton import versions

    version = versions.installed()
    if version is None:
        if not _card():
            return skipped("Triton is not installed, and there is no NVIDIA GPU to compile for")
        return warn("Triton is not installed, so its kernels cannot run", fix=versions.INSTALL)
    found, least = (".".join(map(str, numbers)) for numbers in (version, versions.LEAST))
    if version < versions.LEAST:
        return warn(f"Triton {found} is too old: {least} or newer is needed", fix=UPGRADE)
    paired = probes.required("torch", "triton")
    if paired is not None and paired != probes.installed("triton"):
        text = f"Triton {found} is not the one that PyTorch {torch.__version__} is made for, which is {paired}"
        return warn(text, "torch.compile may fail on GPUs", fix=f"pip install triton=={paired}")
    return ok(f"Triton {found}")


def check_interpreter() -> Result:
    from faops.backends.triton import versions

    if not versions.interpreting():
        return ok("TRITON_INTERPRET is not set")
    use = "every Triton kernel of this environment, of faops and of others, runs on the CPU some thousand times slower"
    return warn(f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']} is set", use, fix="unset TRITON_INTERPRET")


def check_compiler() -> Result:
    if reason := _useless():
        return skipped(reason)
    use = "Triton cannot build the module that launches its kernels"
    found = cxx.look("Triton", use, COMPILERS, named_fix="unset CC", variable="CC")
    if found.status == "ok" and (header := cxx.missing_header()):
        return warn(f"{header} is not there", use, fix=cxx.install_headers())
    return found


def check_assembler() -> Result:
    """Triton's own, unless TRITON_PTXAS_PATH names another. It may be there and not run: wrong rights, or noexec."""
    from faops.backends.triton import versions

    if versions.installed() is None:
        return skipped("Triton is not installed")
    named = os.environ.get("TRITON_PTXAS_PATH")
    path = Path(named) if named else _own_assembler()
    if path is None:
        return skipped("this Triton has no ptxas of its own")
    mend = "unset TRITON_PTXAS_PATH" if named else "pip install --force-reinstall triton"
    runs, said = probes.output_of([str(path), "--version"])
    if not runs:
        return warn(f"{path} does not run: {said or 'it says nothing'}", fix=mend)
    release = re.search(r"release [\d.]+", said)
    return ok(f"ptxas {release.group() if release else 'of unknown release'}" + (f" from {named}" if named else ""))


def _own_assembler() -> Path | None:
    spec = importlib.util.find_spec("triton")
    places = spec.submodule_search_locations if spec else None
    path = Path(next(iter(places), "")) / "backends/nvidia/bin/ptxas" if places else Path()
    return path if path.is_file() else None


def check_cache() -> Result:
    """Looks at the directory, or at the nearest one above it that is there; writes nothing."""
    if reason := _useless():
        return skipped(reason)
    home = Path(os.environ.get("TRITON_HOME", "~")).expanduser()
    directory = Path(os.environ.get("TRITON_CACHE_DIR", home / ".triton" / "cache"))
    if not probes.can_be_written(directory):
        return fail(f"{directory} cannot be written", fix="export TRITON_CACHE_DIR=/a/directory/you/can/write")
    return ok(f"{directory} can be written" if directory.exists() else f"{directory} can be created")


def check_compile() -> Result:
    """Compile a small kernel without Triton's cache. Nothing is run."""
    from faops.backends.triton import versions

    if (versions.installed() or (0,)) < versions.LEAST:
        return skipped("no Triton to compile with")
    arch, reason = _own_arch()
    if reason:
        return skipped(reason)
    compiled, said = probes.output_of([sys.executable, "-c", COMPILE.format(arch=arch)], COMPILE_SECONDS)
    if not compiled:
        return fail(f"no kernel can be compiled for {arch}", *said.splitlines()[-5:], fix=UPGRADE)
    return ok(f"one kernel compiled for {arch}: {said.splitlines()[-1]}")


def compile_sample(arch: str) -> None:
    """Compile the forward kernel's smallest tiles and print what came of it; changes this process's environment."""
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        from faops.autotune.measurement.synthetic import inputs_for
        from faops.backends.triton import forward, space
        from faops.backends.triton.compile import compile_launch
        from faops.inputs import AttentionInputs
        from faops.problem import AttentionProblem

        problem = AttentionProblem(
            dtype="float16", batch=1, seqlen_q=16, seqlen_k=16, heads_q=1, heads_kv=1, head_dim=16, head_dim_v=16
        )
        inputs = inputs_for(problem, torch.device("cpu"))
        assert isinstance(inputs, AttentionInputs)
        ((launch, tensors),) = forward.launches(inputs, space.make_config(16, 16, 1, 1))
        binary = compile_launch(launch, tensors, arch)
        print(f"{binary.seconds:.1f} s, {binary.registers} registers a thread")


def _card() -> bool:
    return torch.cuda.is_available() and not torch.version.hip


def _useless() -> str:
    """Why it does not matter whether Triton's launcher can be built, or nothing."""
    from faops.backends.triton import versions

    if versions.installed() is None:
        return "Triton is not installed"
    return "" if _card() else "no NVIDIA GPU to launch kernels on"


def _own_arch() -> tuple[str, str]:
    """The architecture of the first card, or any where there is none; and why Triton has no code for it, or nothing."""
    from faops.backends.triton import versions

    if not _card():
        return ANY_ARCH, ""
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    return arch, "" if 10 * major + minor >= versions.LEAST_ARCH else f"the kernels need sm_80 or newer, not {arch}"
