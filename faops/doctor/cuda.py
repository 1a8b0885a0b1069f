"""Group cuda: what compiles the raw CUDA kernels (CuPy's NVRTC), and the compiler of their emulator.

The backend is imported inside the checks, so that a defect in it is a finding and no crash of all of doctor.
"""

from __future__ import annotations

import time

import torch

from faops.architectures import MIB
from faops.doctor import cxx, nvidia, probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "cuda"
CUPY = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
LEAST_CUPY = 14  # major version; from here on CuPy finds the NVRTC that pip installs
COMPILERS = ("g++", "clang++")
BUDGET_SECONDS = 15.0  # a slow machine leaves out what is not compiled by then


def checks() -> list[Check]:
    return [
        Check("cuda.cupy", GROUP, "CuPy, whose NVRTC compiles the raw CUDA kernels, is installed once", check_cupy),
        Check("cuda.nvrtc", GROUP, "NVRTC can be loaded", check_nvrtc),
        Check("cuda.driver", GROUP, "the NVIDIA driver takes what NVRTC compiles", check_driver),
        Check(
            "cuda.compile", GROUP, "a kernel compiles for every architecture", check_compile, limit=120.0, ahead=True
        ),
        Check("cuda.cache", GROUP, "compiled kernels can be kept on disk", check_cache),
        Check("cuda.emulator", GROUP, "a C++ compiler for the emulator of the raw CUDA kernels", check_emulator),
    ]


def check_cupy() -> Result:
    from faops.backends.cuda_raw import nvrtc

    found = {name: version for name in CUPY if (version := probes.installed(name))}
    if len(found) > 1:
        text = f"{' and '.join(found)} are installed; they overwrite each other's files"
        return warn(text, fix=f"pip uninstall --yes {' '.join(found)} && {_install()}")
    for name, version in found.items():
        if name == "cupy-cuda11x" or int(version.partition(".")[0]) < LEAST_CUPY:
            text = f"{name} {version} does not find the NVRTC that pip installs: CuPy {LEAST_CUPY} or newer does"
            return warn(text, fix=f"pip uninstall --yes {name} && {_install()}")
        return ok(f"{name} {version}")
    if not nvrtc.installed():
        return ok("CuPy is installed, though not from a wheel for CUDA 12 or 13")
    if not _card():
        return skipped("CuPy is not installed, and there is no NVIDIA GPU to compile for")
    return warn("CuPy is not installed, so the raw CUDA kernels cannot be compiled", fix=_install())


def check_nvrtc() -> Result:
    from faops.backends.cuda_raw import nvrtc

    if nvrtc.installed():
        return skipped("CuPy is not installed")
    if reason := nvrtc.probe():
        return warn(reason, fix=_install())
    where = nvrtc.library_path()
    return ok(f"NVRTC {nvrtc.version_text()}" + (f" from {where}" if where else ""), f"knows {_architectures()}")


def _architectures() -> str:
    from faops.backends.cuda_raw import nvrtc

    return ", ".join(f"sm_{number}" for number in nvrtc.supported())


def check_driver() -> Result:
    from faops.backends.cuda_raw import nvrtc, targets

    driver = targets.driver_cuda_version()
    if driver is None:
        return skipped("no NVIDIA driver")
    if nvrtc.probe():
        return skipped("no NVRTC to compare the driver with")
    if reason := targets.driver_reason(nvrtc.version(), driver):
        installed = " ".join(name for name in CUPY if probes.installed(name))
        remove = f"pip uninstall --yes {installed} && " if installed else ""
        return warn(reason, "a newer driver would do as well", fix=f"{remove}{_install()}")
    versions = f"the driver for CUDA {driver[0]}.{driver[1]} takes what NVRTC {nvrtc.version_text()} compiles"
    newer = targets.driver_reason(nvrtc.version(), driver, kind="ptx")
    return ok(versions, *([f"but {newer}: a card that this NVRTC does not know cannot be used"] if newer else []))


def check_compile() -> Result:
    """Compile without the cache, the cards of this machine first. Nothing is run."""
    from faops.backends.cuda_raw import nvrtc, targets
    from faops.backends.cuda_raw.sample import sample_source
    from faops.errors import FaopsError

    if nvrtc.probe():
        return skipped("no NVRTC to compile with")
    start, details, times, left = time.perf_counter(), [], [], []
    archs = list(dict.fromkeys([*_own_archs(), *targets.ARCHS]))
    for arch in archs:
        if time.perf_counter() - start > BUDGET_SECONDS:
            left.append(arch)
            continue
        try:
            target = nvrtc.target_of(arch)
            compiled = nvrtc.compile(sample_source(target), target)
        except FaopsError as error:
            return fail(f"no kernel can be compiled for {arch}", *str(error).splitlines(), fix=_mend(str(error)))
        registers = f", {compiled.registers} registers a thread" if compiled.registers is not None else ""
        shown = arch if target.name == arch else f"{arch} (as {target})"
        details.append(f"{shown}: {compiled.seconds:.2f} s{registers}")
        times.append(f"{target} {compiled.seconds:.2f} s")
    if left:
        details.append(f"left out after {BUDGET_SECONDS:.0f} s: {', '.join(left)}")
    count = f"{len(archs) - len(left)} of {len(archs)}" if left else f"{len(archs)}"
    seconds = time.perf_counter() - start
    summary = f"one kernel compiled for {count} architectures in {seconds:.1f} s: {', '.join(times)}"
    return ok(summary, *details)


def _mend(error: str) -> str:
    """NVRTC opens the file of its built-in functions only to compile, so that one that is missing shows here."""
    return _install("--upgrade --force-reinstall " if "builtins" in error else "--upgrade ")


def check_cache() -> Result:
    """Looks at the directory, or at the nearest one above it that is there; writes nothing."""
    from faops.backends.cuda_raw import cubin_cache, nvrtc

    if nvrtc.installed():
        return skipped("CuPy is not installed")
    limit = cubin_cache.limit_bytes()
    if limit == 0:
        text = "FAOPS_CUBIN_CACHE_MB is 0: every process compiles its kernels again, a third of a second each"
        return warn(text, fix="unset FAOPS_CUBIN_CACHE_MB")
    directory = cubin_cache.directory()
    if not probes.can_be_written(directory):
        return warn(f"{directory} cannot be written: every process compiles its kernels again",
                    fix="export FAOPS_CACHE_DIR=/a/directory/you/can/write")  # fmt: skip
    kept, size = cubin_cache.usage()
    return ok(f"{kept} compiled kernels, {size / MIB:.1f} of {limit // MIB} MiB, in {directory}")


def check_emulator() -> Result:
    use = "faops runs without it; only FAOPS_EMULATE needs it"
    return cxx.look("the emulator", use, COMPILERS, named_fix="unset CXX")


def _card() -> bool:
    return nvidia.driver_present()


def _own_archs() -> list[str]:
    """Architectures of this machine's NVIDIA GPUs that the kernels are made for."""
    from faops.backends.cuda_raw import targets

    if torch.version.hip or not torch.cuda.is_available():
        return []
    capabilities = (torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    found = (f"sm_{major}{minor}" for major, minor in capabilities)
    return [arch for arch in found if not targets.unsupported(arch)]


def _install(options: str = "") -> str:
    """The command that installs what suits the driver; without a driver, what is newest."""
    from faops.backends.cuda_raw import targets

    driver = targets.driver_cuda_version()
    extra = "cuda12" if driver is not None and driver < (13, 0) else "cuda13"
    return f"pip install {options}'faops[{extra}]'"
