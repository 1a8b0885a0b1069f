"""Whether anything says that this machine is to use an NPU; without that the checks of the group are skipped."""

from __future__ import annotations

from faops.doctor import probes
from faops.doctor.npu import smi

NO_NPU = "no Ascend NPU: neither npu-smi nor torch-npu is installed"
NO_TORCH_NPU = "torch-npu is not installed"


def expected() -> bool:
    """Whether npu-smi or torch-npu is installed."""
    return smi.installed() or torch_npu() is not None


def torch_npu() -> str | None:
    """Version of the installed torch-npu, or None; nothing is imported."""
    return probes.installed("torch-npu")


def without_torch_npu() -> str:
    """Why there is no torch-npu to look at; "" if there is one."""
    if torch_npu() is not None:
        return ""
    return NO_TORCH_NPU if smi.installed() else NO_NPU
