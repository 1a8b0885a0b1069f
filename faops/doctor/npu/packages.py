"""The Python packages that must fit each other: torch and torch-npu, triton and triton-ascend."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys

import torch

from faops.doctor import probes
from faops.doctor.check import Result, fail, ok, skipped, warn
from faops.doctor.npu.cann import source
from faops.doctor.npu.signs import NO_NPU, expected, torch_npu, without_torch_npu

SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # of PyTorch: whether `import torch` imports torch_npu too, "1" by default
IMPORT = (sys.executable, "-c", "import torch")
IMPORT_SECONDS = 120.0


def check_package() -> Result:
    package, version = torch_npu(), numbers(str(torch.__version__))
    if package is None:
        if not expected():
            return skipped(NO_NPU)
        return warn("npu-smi is installed, but torch-npu is not", fix=f"pip install 'torch-npu=={version}.*'")
    needed = numbers(probes.required("torch-npu", "torch") or package)
    if needed != version:
        return fail(f"torch-npu {package} is made for PyTorch {needed}, not {torch.__version__}",
                    fix=f"pip install torch=={needed}")  # fmt: skip
    return ok(f"torch-npu {package} with PyTorch {torch.__version__}")


def numbers(version: str) -> str:
    """2.7.1 of 2.7.1.post2 or 2.7.1+cpu."""
    found = re.match(r"\d+(?:\.\d+){0,2}", version)
    return found.group() if found else version


def check_triton() -> Result:
    """triton-ascend puts its files where those of triton are, so whichever was installed last has won."""
    ascend, triton = probes.installed("triton-ascend"), probes.installed("triton")
    if ascend is None:
        return skipped("triton-ascend is not installed" if expected() else NO_NPU)
    mend = f"pip uninstall --yes triton triton-ascend && pip install triton-ascend=={ascend}"
    foreign = _foreign_files()
    if foreign:
        text = f"{len(foreign)} files of triton-ascend {ascend} are missing or of another package"
        also = f"triton {triton} is installed too" if triton else "triton is not installed now"
        return fail(f"{text}; {also}", *foreign[:3], fix=mend)
    if triton and probes.required("triton-ascend", "triton") != triton:
        text = f"triton {triton} is installed beside triton-ascend {ascend}, and both are the package `triton`"
        return warn(text, "the next update of one overwrites the other", fix=mend)
    return ok(f"triton-ascend {ascend}")


def _foreign_files() -> list[str]:
    """Files of triton-ascend that are not there as they were installed, by their size."""
    files = importlib.metadata.files("triton-ascend") or []
    return [str(file) for file in files if file.parts[0] == "triton" and file.size is not None and not _is_there(file)]


def _is_there(file: importlib.metadata.PackagePath) -> bool:
    try:
        return os.stat(str(file.locate())).st_size == file.size
    except OSError:
        return False


def check_autoload() -> Result:
    """`import torch` imports torch_npu too, and fails with it: then no program of this environment starts."""
    if absent := without_torch_npu():
        return skipped(absent)
    if "torch_npu" in sys.modules:
        return ok("`import torch` brings torch_npu")
    ended = probes.run(IMPORT, IMPORT_SECONDS, {SWITCH: "1"})
    if ended.reason:
        consequence = f"nothing that uses PyTorch starts here; {SWITCH}=0 starts it without the NPU"
        return fail(f"`import torch` fails: {reason(ended)}", consequence, *_exceptions(ended), fix=mending(ended.err))
    if os.environ.get(SWITCH, "1") != "1":
        text = f"{SWITCH}={os.environ[SWITCH]} is set: programs reach no NPU unless they import torch_npu"
        return warn(text, fix=f"unset {SWITCH}")
    return warn("`import torch` does not bring torch_npu", "its entry point in the group torch.backends is missing",
                fix=f"pip install --force-reinstall --no-deps torch-npu=={torch_npu()}")  # fmt: skip


def _exceptions(ended: probes.Ended) -> tuple[str, ...]:
    """What a Python program said at its end, without the frames of its stack."""
    return tuple(line for line in ended.last_lines(50) if line[:1].strip() and not line.startswith("Traceback"))[-3:]


def reason(ended: probes.Ended) -> str:
    """Why a Python program failed, in a line: its first exception, which is the cause of those after it."""
    found = re.search(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b:? .*", ended.err, re.MULTILINE)
    return found.group() if found else ended.reason


def mending(said: str) -> str:
    """The command that most likely mends an import of torch_npu that failed with the text ``said``."""
    if "Two accelerators" in said:  # a PyTorch with CUDA, on a machine with an NVIDIA GPU
        return f"export {SWITCH}=0"
    if "undefined symbol" in said or "has no attribute" in said:
        return f"pip install torch=={numbers(probes.required('torch-npu', 'torch') or torch_npu() or '')}"
    if "No module named" in said:
        missing = re.search(r"No module named '([\w-]+)", said)
        if missing and not missing.group(1).startswith(("torch", "tbe", "te")):
            return f"pip install {missing.group(1)}"
    return source()
