"""A made-up machine for doctor's checks: programs that are run, packages that are found, files under a root of its own.

Only what cannot be had without the hardware is replaced: the dynamic loader, the driver's CUDA version, and what
PyTorch says of its GPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from faops.backends.cuda_raw import targets
from faops.doctor import nvidia, probes
from faops.doctor.check import Result
from faops.doctor.npu import probe
from faops.registry import Kernel
from tests.doctor import ascend
from tests.npu.support import ascend as simulated_npu

CARD = {
    "product_name": "NVIDIA H200",
    "persistence_mode": "Enabled",
    "compute_mode": "Default",
    "current_mig": "Disabled",
    "mig_devices": "None",
    "total": "143771 MiB",
    "free": "143000 MiB",
    "hw_thermal_slowdown": "Not Active",
    "dram_uncorrectable": "0",
}


def card_xml(event: str = "event", **changed: str) -> str:
    """One card as `nvidia-smi -q -x` prints it, fields that doctor reads; drivers before 535 say event="throttle"."""
    card = {**CARD, **changed}
    return (
        f"<gpu id='00000000:00:04.0'><product_name>{card['product_name']}</product_name>"
        f"<persistence_mode>{card['persistence_mode']}</persistence_mode>"
        f"<mig_mode><current_mig>{card['current_mig']}</current_mig></mig_mode>"
        f"<mig_devices>{card['mig_devices']}</mig_devices>"
        f"<clocks_{event}_reasons><clocks_{event}_reason_gpu_idle>Active</clocks_{event}_reason_gpu_idle>"
        f"<clocks_{event}_reason_hw_thermal_slowdown>{card['hw_thermal_slowdown']}"
        f"</clocks_{event}_reason_hw_thermal_slowdown></clocks_{event}_reasons>"
        f"<fb_memory_usage><total>{card['total']}</total><free>{card['free']}</free></fb_memory_usage>"
        f"<compute_mode>{card['compute_mode']}</compute_mode>"
        f"<ecc_errors><volatile><dram_correctable>7</dram_correctable>"
        f"<dram_uncorrectable>{card['dram_uncorrectable']}</dram_uncorrectable></volatile></ecc_errors></gpu>"
    )


def smi_xml(*cards: str, driver: str = "580.65.06", cuda: str = "13.0") -> str:
    """What `nvidia-smi -q -x` prints."""
    versions = f"<driver_version>{driver}</driver_version><cuda_version>{cuda}</cuda_version>"
    log = f"<nvidia_smi_log>{versions}{''.join(cards)}</nvidia_smi_log>"
    return f'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n{log}\n'


class Machine:
    """Begins without programs on PATH, cards, drivers and libraries; packages are those of this environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.root, self.bin, self.site = (folder / name for name in ("root", "bin", "site"))
        for path in (self.root, self.bin, self.site):
            path.mkdir()
        self.libraries: set[str] = set()
        self.hidden: set[str] = set()
        for name in ("CUDA_VISIBLE_DEVICES", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME",
                     "ASCEND_RT_VISIBLE_DEVICES", "TORCH_DEVICE_BACKEND_AUTOLOAD", "CXX", "CC",
                     "TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_PTXAS_PATH", "KUBERNETES_SERVICE_HOST",
                     "FAOPS_TEST_SEED"):  # fmt: skip
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setattr(probes, "ROOT", self.root)
        monkeypatch.setattr(probes, "library", lambda name: name in self.libraries)
        monkeypatch.setattr(probes, "loading", lambda names: {name: self.loading(name) for name in names})
        monkeypatch.setattr(targets, "driver_cuda_version", lambda: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.syspath_prepend(str(self.site))

    def loading(self, library: str) -> str:
        """What the dynamic loader says of a library: "" where it loads."""
        return "" if library in self.libraries else f"{library}: cannot open shared object file"

    # ------------------------------------------------------------------------------------------ programs, files

    def program(self, name: str, prints: str = "", code: int = 0, seconds: float = 0, ends: str = "") -> Path:
        """Put a program on PATH that prints a text and ends with ``code``, after ``seconds``.

        ``ends`` is a command of the shell to end with instead; only those built in are found.
        """
        said = self.bin / f"{name}.txt"
        said.write_text(prints.rstrip("\n") + "\n")  # `read` takes whole lines only
        path = self.bin / name
        wait = f"{shutil.which('sleep', path='/usr/bin:/bin')} {seconds}\n" if seconds else ""
        path.write_text(
            f"#!/bin/sh\n{wait}while IFS= read -r line; do echo \"$line\"; done < '{said}'\n{ends or f'exit {code}'}\n"
        )
        path.chmod(0o755)
        return path

    def file(self, path: str, text: str = "") -> Path:
        """Write a file below the root, such as "dev/nvidia0"."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text)
        return full

    def pci(self, vendor: str, kind: str, address: str = "0000:01:00.0") -> None:
        """Plug a card in."""
        self.file(f"sys/bus/pci/devices/{address}/vendor", vendor + "\n")
        self.file(f"sys/bus/pci/devices/{address}/class", kind + "\n")

    # ------------------------------------------------------------------------------------------ packages

    def package(self, name: str, version: str, *requires: str, folder: Path | None = None) -> None:
        """Install a distribution, as far as its metadata goes; first on the path."""
        place = (folder or self.site) / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (place / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n")
        importlib.invalidate_caches()

    # ------------------------------------------------------------------------------------------ accelerators

    def nvidia(self, *cards: str, cuda: tuple[int, int] = (13, 0), built: str | None = "13.0") -> None:
        """An NVIDIA machine in order: driver, device files, nvidia-smi, and a PyTorch that reaches one H200."""
        self.pci("0x10de", "0x030200")
        self.libraries.add(nvidia.LIBRARY)
        for name in ("nvidiactl", "nvidia-uvm", "nvidia0"):
            self.file(f"dev/{name}")
        self.program("nvidia-smi", smi_xml(*(cards or (card_xml(),)), cuda="{}.{}".format(*cuda)))
        self.patch.setattr(targets, "driver_cuda_version", lambda: cuda)
        self.torch_gpu(built)

    def torch_gpu(
        self, built: str | None = "13.0", available: bool = True, archs: tuple[str, ...] = ("sm_90",)
    ) -> None:
        """What PyTorch says of its GPUs: one H200."""
        self.patch.setattr(torch.version, "cuda", built)
        self.patch.setattr(torch.version, "hip", None)
        self.patch.setattr(torch.cuda, "is_available", lambda: available)
        self.patch.setattr(torch.cuda, "device_count", lambda: 1)
        self.patch.setattr(torch.cuda, "get_arch_list", lambda: list(archs))
        self.patch.setattr(torch.cuda, "get_device_capability", lambda index=0: (9, 0))
        self.patch.setattr(torch.cuda, "get_device_name", lambda index=0: "NVIDIA H200")

    def ascend(self, torch_npu: str = "", cann: str = "8.5.0") -> None:
        """An Ascend machine in order: driver, device files, npu-smi, CANN, torch-npu for this PyTorch, and two 910B3.

        ``torch_npu`` and ``cann`` are versions; the first is by default one for this PyTorch.
        """
        version = str(torch.__version__).partition("+")[0]
        self.pci("0x19e5", "0x120000")
        for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
            self.file(f"dev/{name}")
        self.program("npu-smi", ascend.SMI)
        self.package("torch-npu", torch_npu or f"{version}.post1", f"torch=={version}.*")
        self.libraries |= {"libascendcl.so", "libhccl.so", "libopapi.so"}
        home = self.root / "usr/local/Ascend/cann"
        self.file("usr/local/Ascend/ascend-toolkit/set_env.sh")
        self.file(f"usr/local/Ascend/cann/{platform.machine()}-linux/ascend_toolkit_install.info", f"version={cann}\n")
        for variable, folder in (("ASCEND_HOME_PATH", home), ("ASCEND_OPP_PATH", home / "opp")):
            folder.mkdir(exist_ok=True)
            self.patch.setenv(variable, str(folder))
        self.patch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
        self.torch_npu(*ascend.told())

    def torch_npu(self, *stages: dict[str, object], ends: str = "exit 0") -> None:
        """What the child that imports torch_npu prints, and the last command of the shell script that stands for it."""
        lines = ["CANN prints a line of its own"] + [probe.MARK + json.dumps(stage) for stage in stages]
        program = self.program("probe-npu", "\n".join(lines), ends=ends)
        self.patch.setattr(probe, "COMMAND", (str(program),))

    def compilers(self) -> None:
        """The real compilers of the machine that runs the tests are on PATH too."""
        self.patch.setenv("PATH", f"{self.bin}{os.pathsep}/usr/local/bin:/usr/bin:/bin")


def results_of(module: Any) -> dict[str, Result]:
    """Results of all checks of a group, by the last part of their names."""
    return {check.id.partition(".")[2]: check.run() for check in module.checks()}


@contextlib.contextmanager
def able_to_run(kernel: Kernel, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine can run ``kernel``: raw CUDA kernels need an emulated card, Triton's the interpreter, and those of
    Ascend a CPU that passes for an NPU.
    """
    if kernel.backend == "cuda_raw":
        patch.setenv("FAOPS_EMULATE", "t4" if kernel.name.startswith("sm75") else "a100")
    if kernel.backend == "triton":
        patch.setenv("TRITON_INTERPRET", "1")
    of_ascend = kernel.backend == "npu" or kernel.name.startswith("ascend")
    with simulated_npu() if of_ascend else contextlib.nullcontext():
        yield
