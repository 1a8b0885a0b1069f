"""The software that a timing depends on, as the name of a cache directory.

A changed version is another directory, so nothing ever has to be invalidated.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from pathlib import Path

import torch

from faops import cann
from faops.autotune.effort import MEASUREMENT_POLICY

SCHEMA = 1  # of the files in the cache

# Packages whose version changes compiled kernels. They are looked up, never imported.
PACKAGES = (
    "triton", "triton-ascend", "torch-npu", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
)  # fmt: skip
ON_CANN = ("torch-npu", "triton-ascend")  # those that run what CANN holds: its version counts where one is installed


# Files in which a driver says its version, and how: the kernel module of NVIDIA, the package of Ascend.
DRIVERS = {
    "nvidia": (Path("/sys/module/nvidia/version"), r"^(\d\S*)"),
    "ascend": (Path("/usr/local/Ascend/driver/version.info"), r"^Version\s*=\s*(\S+)"),
}


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What timings depend on, name to version: cache schema, measurement policy, torch, and compilers and CANN if
    installed."""
    found = {"schema": str(SCHEMA), "policy": str(MEASUREMENT_POLICY), "torch": str(torch.__version__)}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if any(package in found for package in ON_CANN) and (build := cann.build()):
        found["cann"] = build
    return found


def directory_name() -> str:
    """The environment as a directory name, such as ``schema-1_policy-1_torch-2.13.0+cpu``."""
    return name_of(versions())


def name_of(environment: dict[str, str]) -> str:
    """Directory name of an environment given as name to version."""
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{name}-{version}") for name, version in environment.items())


@functools.cache
def driver(vendor: str) -> str:
    """Version of this machine's driver for the devices of ``vendor``; "" where there is none or it is unknown.

    It is recorded in an entry and is no part of the environment: a new driver seldom changes which config is fastest.
    """
    if vendor not in DRIVERS:
        return ""
    path, pattern = DRIVERS[vendor]
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1) if found else ""
