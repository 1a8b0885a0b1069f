"""What a device is, as far as it can be known without running a kernel on it.

A :class:`DeviceProfile` is a plain value: ``detect(torch.device("cuda"))`` reads a real one, ``known("t4")`` makes one
up, and planning treats both alike.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from faops import ascend
from faops.architectures import KNOWN_DEVICES, KnownDevice, Limits, limits
from faops.errors import ArgumentError


@dataclass(frozen=True)
class DeviceProfile:
    """A device without a handle to it. Sizes in bytes, rates in bytes/s and FLOP/s; 0 where unknown."""

    vendor: str  # "nvidia", "amd", "ascend", "apple", "cpu", "other"
    family: str  # "turing", "ampere", "ada", "hopper", "blackwell", "ascend", "cpu", ...
    arch: str  # "sm_90", "910B", "x86_64-avx512"
    name: str
    torch_type: str  # the torch device type that reaches it: "cuda", "npu", "cpu", "mps"
    units: int  # streaming multiprocessors, AI cores or CPU cores
    l2_bytes: int = 0
    shared_bytes: int = 0  # opt-in shared memory per block, or the unified buffer
    memory_bytes: int = 0
    mig: str = ""
    threads: int = 0  # CPU: threads torch computes with
    bandwidth: float = 0.0
    matrix_flops: float = 0.0
    soc: int = 0  # Ascend: torch_npu's number of the chip, which tells the members of an architecture apart

    @property
    def limits(self) -> Limits:
        return limits(self.arch)

    @property
    def identity(self) -> str:
        """Readable text naming everything that may change which config is fastest; the cache directory's name."""
        parts = [
            self.vendor,
            self.arch,
            f"{self.units}u",
            f"l2-{self.l2_bytes >> 10}k",
            f"sm-{self.shared_bytes >> 10}k",
        ]
        if self.threads:
            parts.append(f"{self.threads}t")
        if self.soc:
            parts.append(f"soc-{self.soc}")
        parts += [self.name, self.mig]
        return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part).strip("-") for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def known(name: str) -> DeviceProfile:
    """Profile of a well-known device by its short name, such as "t4", "h200", "910b" or "950"; "cpu" is this host.

    Raises ArgumentError for an unknown name.
    """
    if name == "cpu":
        return detect("cpu")
    device = KNOWN_DEVICES.get(name.lower())
    if device is None:
        raise ArgumentError("device", repr(name), f"one of cpu, {', '.join(KNOWN_DEVICES)}")
    limit = limits(device.arch)
    of_ascend = limit.family == "ascend"
    return DeviceProfile(
        vendor="ascend" if of_ascend else "nvidia",
        family=limit.family,
        arch=device.arch,
        name=device.name,
        torch_type="npu" if of_ascend else "cuda",
        units=device.units,
        l2_bytes=device.l2_bytes,
        shared_bytes=limit.shared_per_block,
        memory_bytes=device.memory_bytes,
        bandwidth=device.bandwidth,
        matrix_flops=device.matrix_flops,
        soc=device.soc,
    )


def detect(device: torch.device | str) -> DeviceProfile:
    """Profile of a torch device of this machine. Opens no device context for the CPU; memoised per device."""
    where = torch.device(device)
    if where.type == "cpu":
        return replace(_detect_cpu(), threads=torch.get_num_threads())
    return _detect(where)


def present() -> list[str]:
    """Types of the torch devices that this machine has, cpu first."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    npu = getattr(torch, "npu", None)
    if npu is not None and npu.is_available():
        found.append("npu")
    return found


def usual() -> str:
    """The device meant where a person names none: cuda or npu where the machine has one, else cpu."""
    return next((name for name in present() if name in ("cuda", "npu")), "cpu")


def named(name: str | None) -> torch.device:
    """The torch device called ``name`` (cpu, cuda, cuda:1, npu...) of this machine, or its :func:`usual` one.

    Raises ArgumentError.
    """
    if name is None:
        return torch.device(usual())
    expected = f"a device of this machine: {', '.join(present())}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError("device", repr(name), expected) from None
    if device.type not in present():
        raise ArgumentError("device", repr(name), expected)
    if device.type != "cpu" and (device.index or 0) >= torch.get_device_module(device).device_count():
        raise ArgumentError("device", repr(name), f"an index below the {device.type} device count")
    return device


@functools.cache
def _detect(device: torch.device) -> DeviceProfile:
    if device.type == "cuda":
        return _detect_hip(device) if torch.version.hip else _detect_cuda(device)
    if device.type == "npu":
        return _detect_npu(device)
    if device.type == "mps":
        return DeviceProfile("apple", "apple", platform.machine(), "Apple GPU", "mps", units=0)
    return DeviceProfile("other", device.type, device.type, device.type, device.type, units=0)


def _detect_cuda(device: torch.device) -> DeviceProfile:
    properties = torch.cuda.get_device_properties(device)
    arch = f"sm_{properties.major}{properties.minor}"
    limit = limits(arch)
    published = next((entry for entry in KNOWN_DEVICES.values() if entry.name == properties.name), None)
    return DeviceProfile(
        vendor="nvidia",
        family=limit.family,
        arch=arch,
        name=properties.name,
        torch_type="cuda",
        units=properties.multi_processor_count,
        l2_bytes=getattr(properties, "L2_cache_size", 0),
        shared_bytes=getattr(properties, "shared_memory_per_block_optin", limit.shared_per_block),
        memory_bytes=properties.total_memory,
        mig=_mig_profile(properties.name),
        bandwidth=published.bandwidth if published else 0.0,
        matrix_flops=published.matrix_flops if published else 0.0,
    )


def _mig_profile(name: str) -> str:
    """MIG slice in the device name, such as "1g.10gb"; "" for a whole device."""
    found = re.search(r"MIG (\S+)", name)
    return found.group(1) if found else ""


def _detect_hip(device: torch.device) -> DeviceProfile:
    properties = torch.cuda.get_device_properties(device)
    return DeviceProfile(
        vendor="amd",
        family="amd",
        arch=getattr(properties, "gcnArchName", "gfx"),
        name=properties.name,
        torch_type="cuda",
        units=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
    )


def _detect_npu(device: torch.device) -> DeviceProfile:
    npu = getattr(torch, "npu")  # noqa: B009 (set by torch_npu, unknown to type checkers)
    index = device.index or 0
    name, soc = str(npu.get_device_name(index)), ascend.soc_number(npu)
    arch = ascend.architecture(soc, name)
    told, published, alike = ascend.properties(npu, index), _published(arch, name), _published(arch)
    return DeviceProfile(
        vendor="ascend",
        family="ascend",
        arch=arch,
        name=name,
        torch_type="npu",
        units=told.cores or (alike.units if alike else 0),
        l2_bytes=told.l2_bytes or (alike.l2_bytes if alike else 0),
        shared_bytes=limits(arch).shared_per_block,
        memory_bytes=told.memory_bytes,
        bandwidth=published.bandwidth if published else 0.0,
        matrix_flops=published.matrix_flops if published else 0.0,
        soc=soc,
    )


def _published(arch: str, name: str = "") -> KnownDevice | None:
    """What is published of the Ascend chip ``name``, or without a name of any of its architecture."""
    same = (entry for entry in KNOWN_DEVICES.values() if entry.arch == arch)
    return next((entry for entry in same if name in ("", entry.name.replace(" ", ""))), None)


@functools.cache
def _detect_cpu() -> DeviceProfile:
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return DeviceProfile(
        vendor="cpu",
        family="cpu",
        arch=f"{platform.machine().lower()}-{capability}{'-bf16' if _has_bfloat16_products() else ''}",
        name=_cpu_name(),
        torch_type="cpu",
        units=_usable_cores(),
        l2_bytes=_sysconf("SC_LEVEL2_CACHE_SIZE"),
        memory_bytes=_sysconf("SC_PHYS_PAGES") * _sysconf("SC_PAGE_SIZE"),
    )


def _has_bfloat16_products() -> bool:
    """Whether the CPU multiplies bfloat16 matrices with instructions of their own."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _sysconf(name: str) -> int:
    try:
        return max(0, os.sysconf(name))
    except (AttributeError, OSError, ValueError):
        return 0
