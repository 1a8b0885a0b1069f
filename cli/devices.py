"""What `--device` means: a device of this machine, or for planning a well-known one by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from faops.device import DeviceProfile


def default() -> str:
    """The device meant when none is named: cuda or npu where the machine has one, else cpu."""
    from faops import device

    return device.usual()


def torch_device(name: str | None) -> torch.device:
    """The torch device called `name` (cpu, cuda, cuda:1, npu...) of this machine, or its :func:`default`.

    Raises ArgumentError.
    """
    from faops import device

    return device.named(name)


def present() -> list[str]:
    """Types of the torch devices that this machine has, cpu first."""
    from faops import device

    return device.present()


def profile(name: str | None) -> DeviceProfile:
    """Profile of a device of this machine (None: its :func:`default`), or of a well-known one such as t4 or h200.

    Raises ArgumentError.
    """
    from faops import device
    from faops.architectures import KNOWN_DEVICES
    from faops.errors import ArgumentError

    if name is not None and name.lower() in KNOWN_DEVICES:
        return device.known(name)
    try:
        return device.detect(torch_device(name))
    except ArgumentError:
        choices = ", ".join([*present(), *KNOWN_DEVICES])
        raise ArgumentError("device", repr(name), f"one of {choices}") from None
