"""Where the Ascend kernel runs, and whether `import triton` gives triton-ascend; found out without importing it.

triton-ascend brings a package ``triton`` of its own, so it cannot stand beside the one of the same name.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from faops.backends.triton import versions
from faops.device import DeviceProfile

PACKAGE = "triton-ascend"
INSTALL = f"pip uninstall triton {PACKAGE}, then pip install {PACKAGE}"
LEAST = (3, 2)
# What triton-ascend 3.2 compiles for: "Atlas A2/A3" in the compatibility matrix of its release notes.
ARCHS = ("910B", "910C")


def missing(device: DeviceProfile) -> Iterator[str]:
    """What keeps the kernel from running on ``device``. Of an NPU that is not in this machine only its kind counts."""
    if device.vendor != "ascend":
        yield f"it runs on Ascend NPUs, not on {device.name}"
        return
    if device.arch not in ARCHS:
        yield f"{PACKAGE} is known to compile for {' and '.join(ARCHS)}, not for {device.arch}"
    if _npu_is_here():
        yield from absent()
        if versions.interpreted():
            yield "Triton interprets its kernels in this process (TRITON_INTERPRET=1), on a CPU"


def _npu_is_here() -> bool:
    """Whether torch_npu is loaded and sees an NPU."""
    npu: Any = getattr(torch, "npu", None)
    return npu is not None and bool(npu.is_available())


def absent() -> Iterator[str]:
    """Why `import triton` does not give triton-ascend here."""
    version = versions.version_of(PACKAGE)
    if version is None:
        yield f"{PACKAGE} is not installed: {INSTALL}"
        return
    if version < LEAST:
        found, least = (".".join(map(str, number)) for number in (version, LEAST))
        yield f"{PACKAGE} {found} is too old, {least} or newer is needed: {INSTALL}"
    folder = _imported()
    if folder is None or not (folder / "backends" / "ascend").is_dir():
        yield f"`import triton` gives another package than that of {PACKAGE}: {INSTALL}"
    elif _folder_of("triton") == folder:
        yield f"triton is installed in the place of {PACKAGE}, over some of its files: {INSTALL}"


def _imported() -> Path | None:
    """The folder that `import triton` reads."""
    found = importlib.util.find_spec("triton")
    return None if found is None or found.origin is None else Path(found.origin).resolve().parent


def _folder_of(package: str) -> Path | None:
    """The folder ``triton`` that an installed package wrote."""
    try:
        located = importlib.metadata.distribution(package).locate_file("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(located)).resolve()
