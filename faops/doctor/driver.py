"""Group driver: the NVIDIA driver, whether PyTorch reaches it, and the optional compilers of GPU kernels."""

from __future__ import annotations

import warnings

import torch

from faops.doctor import probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "driver"
LIBRARY = "libcuda.so.1"
OPTIONAL = ("triton", "cupy-cuda12x", "cupy-cuda13x")


def checks() -> list[Check]:
    return [
        Check("driver.nvidia", GROUP, "the NVIDIA driver works, where there is one", check_nvidia),
        Check("driver.cuda", GROUP, "PyTorch reaches the NVIDIA GPUs, where there are any", check_cuda),
        Check("driver.packages", GROUP, "which optional GPU packages are installed", check_packages),
    ]


def check_nvidia() -> Result:
    smi = probes.program("nvidia-smi")
    if smi is None:
        if probes.library(LIBRARY):
            return ok(f"{LIBRARY} is there (nvidia-smi is not)")
        return skipped("no NVIDIA GPU: the torch backend serves the CPU")
    runs, said = probes.output_of([smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    if not runs:
        text = "nvidia-smi cannot talk to the driver"
        return fail(text, *said.splitlines()[:3], fix="sudo modprobe nvidia && nvidia-smi")
    cards = said.splitlines()
    return ok(f"{len(cards)} NVIDIA {'GPU' if len(cards) == 1 else 'GPUs'}", *cards)


def check_cuda() -> Result:
    driver = probes.program("nvidia-smi") is not None or probes.library(LIBRARY)
    if torch.version.hip:
        return ok(f"PyTorch is built for ROCm {torch.version.hip}")
    if not driver:
        return skipped("no NVIDIA driver")
    if torch.version.cuda is None:
        reinstall = "pip uninstall --yes torch && pip install torch"
        return warn(f"there is an NVIDIA driver, but PyTorch {torch.__version__} is built without CUDA", fix=reinstall)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = [str(warning.message) for warning in caught]
        text = f"PyTorch (CUDA {torch.version.cuda}) finds no GPU"
        return fail(text, *said, fix="nvidia-smi; echo $CUDA_VISIBLE_DEVICES")
    return _check_architectures()


def _check_architectures() -> Result:
    """Whether this build of PyTorch has code for every card in the machine."""
    built = torch.cuda.get_arch_list()
    cards, unserved = [], []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        cards.append(f"cuda:{index} {torch.cuda.get_device_name(index)} (sm_{major}{minor})")
        if not _serves(built, major, minor):
            unserved.append(cards[-1])
    if unserved:
        text = f"PyTorch {torch.__version__} has no code for {', '.join(unserved)}"
        return fail(text, f"built for {', '.join(built)}", fix="pip install --upgrade torch")
    return ok(f"PyTorch reaches {len(cards)} with CUDA {torch.version.cuda}", *cards)


def _serves(built: list[str], major: int, minor: int) -> bool:
    """Code for sm_XY runs on the same major from minor Y on; PTX (compute_XY) is compiled for anything newer."""
    for name in built:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        of_major, of_minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and of_major == major and of_minor <= minor:
            return True
        if kind == "compute" and (of_major, of_minor) <= (major, minor):
            return True
    return False


def check_packages() -> Result:
    """Only tells: no kernel is missing because of an absent package that no registered backend asks for."""
    found = {name: probes.installed(name) for name in OPTIONAL}
    return ok(", ".join(f"{name} {version}" if version else f"{name} not installed" for name, version in found.items()))
