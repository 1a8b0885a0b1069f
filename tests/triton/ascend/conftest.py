"""Fixtures of the tests of the Ascend kernel, which is interpreted on CPU tensors that are planned as an NPU's."""

from __future__ import annotations

import sys

import pytest

from faops import device, dispatch
from faops.device import DeviceProfile
from tests.triton.ascend.support import NPU


@pytest.fixture(autouse=True)
def on_npu(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device is a 910B to faops."""

    def detect(where: object) -> DeviceProfile:
        return NPU

    for name, module in list(sys.modules.items()):
        if name.startswith("faops.") and name != device.__name__ and getattr(module, "detect", None) is device.detect:
            monkeypatch.setattr(module, "detect", detect)
    dispatch.forget()
