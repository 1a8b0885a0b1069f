"""What tests of the npu backend share: an Ascend NPU that is a CPU with the contract double of its operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from faops import dispatch
from faops.backends.npu import operators
from faops.device import DeviceProfile, known
from tests.npu import double

# Short names in faops.device.known, by the double's.
PROFILES = {"310P": "310p", "910B": "910b", "910C": "910c", "950": "950"}


@contextmanager
def ascend(version: str = "2.13.0", soc: str = "910B", cann: str = "9.1.0") -> Iterator[double.Handle]:
    """CPU tensors are planned for as an Ascend ``soc``, with the operators of ``version`` of torch_npu in this process.

    Gives the double's handle, whose ``calls`` are those made to the operators.
    """
    profile = known(PROFILES[soc])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("faops.device._detect_cpu", lambda: profile)
        handle = double.install(version, soc, cann)
        _forget()
        try:
            yield handle
        finally:
            handle.remove()
            _forget()


def _forget() -> None:
    operators.forget()
    dispatch.forget()


def profile(soc: str = "910B") -> DeviceProfile:
    """The device profile that plans are made for, without a double."""
    return known(PROFILES[soc])
