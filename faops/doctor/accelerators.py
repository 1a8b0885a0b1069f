"""The devices of this machine that PyTorch reaches."""

from __future__ import annotations

import torch


def present() -> list[torch.device]:
    """The CPU and every accelerator."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    npu = getattr(torch, "npu", None)
    if npu is not None and npu.is_available():
        found += [torch.device("npu", index) for index in range(npu.device_count())]
    return found
