"""Group npu: Ascend devices. Skipped where neither torch_npu nor npu-smi is installed."""

from __future__ import annotations

import importlib

import torch

from faops.doctor import probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "npu"


def checks() -> list[Check]:
    return [Check("npu.devices", GROUP, "PyTorch reaches the Ascend devices, where there are any", check_devices)]


def check_devices() -> Result:
    smi, package = probes.program("npu-smi"), probes.installed("torch-npu")
    if smi is None and package is None:
        return skipped("no Ascend NPU: neither npu-smi nor torch-npu is installed")
    if package is None:
        version = str(torch.__version__).partition("+")[0]
        return warn("npu-smi is installed, but torch-npu is not", fix=f"pip install torch-npu=={version}")
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # torch_npu raises ImportError, OSError or RuntimeError without a working CANN
        text = f"torch-npu {package} cannot be imported: {error}"
        return fail(text, fix="source /usr/local/Ascend/ascend-toolkit/set_env.sh")
    npu = getattr(torch, "npu", None)
    if npu is None or not npu.is_available():
        return fail(f"torch-npu {package} finds no device", fix="npu-smi info")
    count = int(npu.device_count())
    return ok(f"torch-npu {package} reaches {count}", *(f"npu:{i} {npu.get_device_name(i)}" for i in range(count)))
