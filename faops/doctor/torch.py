"""Group torch: PyTorch is new enough, computes, uses the cores it may, works with NumPy, and can compile."""

from __future__ import annotations

import os
import re

import torch

from faops.device import detect
from faops.doctor import cxx, probes
from faops.doctor.check import Check, Result, fail, ok, warn

GROUP = "torch"
MINIMUM = (2, 6)
COMPILERS = ("g++", "clang++", "c++")


def checks() -> list[Check]:
    return [
        Check("torch.version", GROUP, "PyTorch is a version that faops supports", check_version),
        Check("torch.compute", GROUP, "PyTorch multiplies matrices correctly in every dtype", check_compute),
        Check("torch.numpy", GROUP, "PyTorch exchanges arrays with the installed NumPy", check_numpy),
        Check("torch.threads", GROUP, "PyTorch uses no more threads than there are cores", check_threads),
        Check("torch.compile", GROUP, "torch.compile finds what it needs for the CPU", check_compile),
    ]


def check_version() -> Result:
    version = str(torch.__version__)
    found = re.match(r"(\d+)\.(\d+)", version)
    minimum = ".".join(map(str, MINIMUM))
    if found is None or (int(found.group(1)), int(found.group(2))) < MINIMUM:
        return fail(f"PyTorch {version} is older than {minimum}", fix=f"pip install --upgrade 'torch>={minimum}'")
    return ok(f"PyTorch {version}")


def check_compute() -> Result:
    """Whole numbers small enough that every dtype holds the product exactly."""
    left = torch.arange(12).reshape(3, 4) % 5
    right = torch.arange(8).reshape(4, 2) % 3
    expected = torch.tensor([[sum(int(a) * int(b) for a, b in zip(row, column)) for column in right.T] for row in left])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        if not torch.equal((left.to(dtype) @ right.to(dtype)).to(expected.dtype), expected):
            return fail(f"a {dtype} matrix product is wrong", fix="pip install --force-reinstall torch")
    capability = torch.backends.cpu.get_cpu_capability()
    return ok(f"matrix products are right in float64, float32, bfloat16 and float16 ({capability})")


def check_numpy() -> Result:
    """A PyTorch that was built for another major version of NumPy refuses every conversion."""
    version = probes.installed("numpy")
    if version is None:
        return warn("NumPy is not installed", fix="pip install numpy")
    try:
        torch.from_numpy(torch.arange(3).numpy())
    except RuntimeError as error:
        return fail(f"PyTorch {torch.__version__} cannot use NumPy {version}: {error}",
                    fix="pip install --upgrade torch numpy")  # fmt: skip
    return ok(f"NumPy {version}")


def check_threads() -> Result:
    threads, cores = torch.get_num_threads(), detect("cpu").units
    variable = os.environ.get("OMP_NUM_THREADS")
    summary = f"{threads} threads on {cores} usable cores"
    details = (f"OMP_NUM_THREADS={variable}",) if variable else ()
    if threads > cores:
        return warn(f"{summary}: threads will wait for each other", *details, fix=f"export OMP_NUM_THREADS={cores}")
    return ok(summary, *details)


def check_compile() -> Result:
    """A C++ compiler and Python's headers; compiling something would take half a minute."""
    use = "faops runs without it; only torch.compile on the CPU needs it"
    found = cxx.look("torch.compile", use, COMPILERS, named_fix="unset CXX")
    if found.status != "ok":
        return found
    if header := cxx.missing_header():
        return warn(f"{header} is missing, which torch.compile includes", use, fix=cxx.install_headers())
    return found
