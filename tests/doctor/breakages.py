"""How each of doctor's checks is broken: a function that puts a machine in order, yields, spoils one thing, and yields
a part of what the check has to say then. :mod:`tests.doctor.test_breaking` runs them, and misses none.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import torch

from faops.backends.cuda_raw import nvrtc
from tests.doctor.machine import Machine, card_xml, smi_xml

Breakage = Callable[[Machine], Iterator[str]]
BREAKAGES: dict[str, list[Breakage]] = {}  # check id -> ways to break what it looks at
SLOW = {"cuda.compile", "triton.compile"}  # seen in order on the real machine, by tests of their own


def breaks(check: str) -> Callable[[Breakage], Breakage]:
    """Marks a function as a way to break what ``check`` looks at."""

    def mark(breakage: Breakage) -> Breakage:
        BREAKAGES.setdefault(check, []).append(breakage)
        return breakage

    return mark


# --- python and torch -------------------------------------------------------------------------------------------------


@breaks("python.version")
def old_python(machine: Machine) -> Iterator[str]:
    machine.patch.setattr(sys, "version_info", (3, 12, 0, "final", 0))
    yield ""
    machine.patch.setattr(sys, "version_info", (3, 9, 0, "final", 0))
    yield "older than 3.10"


@breaks("python.platform")
def untested_system(machine: Machine) -> Iterator[str]:
    yield ""
    machine.patch.setattr("platform.system", lambda: "Windows")
    yield "not tested"


@breaks("python.environment")
def python_of_the_system(machine: Machine) -> Iterator[str]:
    machine.patch.setattr(sys, "prefix", "/somewhere/venv")
    yield ""
    machine.patch.setattr(sys, "prefix", sys.base_prefix)
    marker = machine.file("usr/lib/python3/EXTERNALLY-MANAGED")
    machine.patch.setattr(sysconfig, "get_path", lambda name: str(marker.parent))
    yield "belongs to the operating system"


@breaks("python.packages")
def second_copy(machine: Machine) -> Iterator[str]:
    yield ""
    machine.package("torch", "1.13.0")
    yield "installed in different versions: torch"


@breaks("python.packages")
def old_package(machine: Machine) -> Iterator[str]:
    machine.package("faops", "9.0", "transformers>=4.53; extra == 'transformers'")
    machine.package("transformers", "4.53.0")
    machine.patch.setattr("faops.doctor.python.WATCHED", ())
    yield ""
    shutil.rmtree(machine.site / "transformers-4.53.0.dist-info")
    machine.package("transformers", "4.9.2")
    yield "transformers 4.9.2 is older than 4.53"


@breaks("torch.version")
def old_torch(machine: Machine) -> Iterator[str]:
    yield ""
    machine.patch.setattr(torch, "__version__", "2.5.1")
    yield "2.5.1 is older than 2.6"


@breaks("torch.compute")
def wrong_products(machine: Machine) -> Iterator[str]:
    yield ""
    usual = torch.Tensor.__matmul__
    machine.patch.setattr(torch.Tensor, "__matmul__", lambda left, right: usual(left, right) + 1)
    yield "matrix product is wrong"


@breaks("torch.numpy")
def numpy_of_another_age(machine: Machine) -> Iterator[str]:
    yield ""

    def refuse(array: object) -> torch.Tensor:
        raise RuntimeError("Numpy is not available")

    machine.patch.setattr(torch, "from_numpy", refuse)
    yield "Numpy is not available"


@breaks("torch.threads")
def too_many_threads(machine: Machine) -> Iterator[str]:
    machine.patch.setattr(torch, "get_num_threads", lambda: 1)
    yield ""
    machine.patch.setattr(torch, "get_num_threads", lambda: 100_000)
    yield "100000 threads"


@breaks("torch.compile")
def no_compiler_for_inductor(machine: Machine) -> Iterator[str]:
    machine.patch.setattr(sysconfig, "get_path", lambda name: str(machine.file("include/Python.h").parent))
    compiler = machine.program("g++", "g++ 12.2")
    yield ""
    compiler.unlink()
    yield "no C++ compiler for torch.compile"


# --- driver -----------------------------------------------------------------------------------------------------------


@breaks("driver.card")
def card_without_driver(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    (machine.bin / "nvidia-smi").unlink()
    machine.libraries.clear()
    machine.torch_gpu(available=False)
    yield "but no driver for it"


@breaks("driver.nvidia")
def driver_updated_without_restart(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.program("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch", code=18)
    yield "cannot talk to the driver"


@breaks("driver.nvidia")
def smi_that_hangs(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.patch.setattr("faops.doctor.probes.TIMEOUT_SECONDS", 0.2)
    machine.program("nvidia-smi", seconds=5)
    yield "cannot talk to the driver"


@breaks("driver.files")
def container_without_device_files(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    machine.torch_gpu(available=False)
    yield ""
    (machine.root / "dev/nvidia-uvm").unlink()
    yield "missing in /dev: nvidia-uvm"


@breaks("driver.version")
def driver_older_than_torch(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(cuda=(12, 4))
    machine.torch_gpu("13.0", available=False)
    yield "the driver is too old: driver for CUDA 12.4"


@breaks("driver.visible")
def hidden_cards(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    yield "hides every GPU"


@breaks("driver.visible")
def card_that_is_not_there(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "0")
    yield ""
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    yield "names GPU 1, but there are 1"


@breaks("driver.cuda")
def torch_finds_nothing(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.torch_gpu(available=False)
    yield "finds no GPU"


@breaks("driver.cuda")
def torch_without_code(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.torch_gpu(archs=("sm_75", "sm_80"))
    yield "has no code for cuda:0 NVIDIA H200"


@breaks("driver.mode")
def mig_without_slices(machine: Machine) -> Iterator[str]:
    machine.nvidia(card_xml(current_mig="Enabled", mig_devices="<mig_device><index>0</index></mig_device>"))
    yield ""
    machine.nvidia(card_xml(current_mig="Enabled"))
    yield "GPU 0 is in MIG mode, but no slice of it was made"


@breaks("driver.mode")
def prohibited(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(card_xml(), card_xml(compute_mode="Prohibited"))
    yield "GPU 1 takes no programs"


@breaks("driver.mode")
def exclusive(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(card_xml(compute_mode="Exclusive_Process"))
    yield "GPU 0 takes one process at a time"


@breaks("driver.memory")
def full_card(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(card_xml(), card_xml(free="900 MiB"))
    yield "GPU 1 is full: 900 of 143771 MiB free"


@breaks("driver.health")
def hot_card(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(card_xml(hw_thermal_slowdown="Active"))
    yield "GPU 0 is slowed down"


@breaks("driver.health")
def hot_card_of_an_old_driver(machine: Machine) -> Iterator[str]:
    machine.nvidia(card_xml("throttle"))
    yield ""
    machine.program("nvidia-smi", smi_xml(card_xml("throttle", hw_thermal_slowdown="Active"), driver="525.60"))
    yield "GPU 0 is slowed down"


@breaks("driver.health")
def memory_errors(machine: Machine) -> Iterator[str]:
    machine.nvidia()
    yield ""
    machine.nvidia(card_xml(dram_uncorrectable="3"))
    yield "GPU 0 had 3 memory errors"


# --- cuda and triton --------------------------------------------------------------------------------------------------


def _with_cupy(machine: Machine) -> None:
    machine.package("cupy-cuda13x", "14.2.0")
    machine.patch.setattr(nvrtc, "_binding", lambda: _Binding)


class _Binding:
    """NVRTC 13.0 that misses the file of its built-in functions."""

    class NVRTCError(RuntimeError):
        pass

    getVersion = staticmethod(lambda: (13, 0))  # noqa: N815 (names of CuPy)
    getSupportedArchs = staticmethod(lambda: [75, 80, 90])  # noqa: N815
    createProgram = destroyProgram = staticmethod(lambda *args: 0)  # noqa: N815
    getProgramLog = staticmethod(lambda program: "nvrtc: error: failed to open libnvrtc-builtins.so.13.0")  # noqa: N815

    @staticmethod
    def compileProgram(program: int, options: Any) -> None:  # noqa: N802
        raise _Binding.NVRTCError("NVRTC_ERROR_BUILTIN_OPERATION_FAILURE")


@breaks("cuda.cupy")
def two_cupys(machine: Machine) -> Iterator[str]:
    machine.package("cupy-cuda13x", "14.2.0")
    yield ""
    machine.package("cupy-cuda12x", "14.2.0")
    yield "they overwrite each other's files"


@breaks("cuda.cupy")
def old_cupy(machine: Machine) -> Iterator[str]:
    machine.package("cupy-cuda13x", "14.2.0")
    yield ""
    shutil.rmtree(machine.site / "cupy_cuda13x-14.2.0.dist-info")
    machine.package("cupy-cuda13x", "13.6.0")
    yield "cupy-cuda13x 13.6.0 does not find"


@breaks("cuda.nvrtc")
def nvrtc_without_its_library(machine: Machine) -> Iterator[str]:
    _with_cupy(machine)
    yield ""

    def missing() -> Any:
        raise OSError("libnvrtc.so.13: cannot open shared object file")

    machine.patch.setattr(nvrtc, "_binding", missing)
    yield "libnvrtc.so.13: cannot open"


@breaks("cuda.driver")
def driver_older_than_nvrtc(machine: Machine) -> Iterator[str]:
    _with_cupy(machine)
    machine.nvidia(cuda=(13, 0))
    yield ""
    machine.nvidia(cuda=(12, 8))
    yield "the driver is for CUDA 12.8"


@breaks("cuda.compile")
def nvrtc_without_builtins(machine: Machine) -> Iterator[str]:
    _with_cupy(machine)
    yield ""
    yield "no kernel can be compiled for sm_75"


@breaks("cuda.cache")
def kernels_cannot_be_kept(machine: Machine) -> Iterator[str]:
    _with_cupy(machine)
    yield ""
    machine.patch.setenv("FAOPS_CACHE_DIR", str(machine.file("in/the/way") / "cache"))
    yield "cannot be written"


@breaks("cuda.cache")
def kernels_are_not_kept(machine: Machine) -> Iterator[str]:
    _with_cupy(machine)
    yield ""
    machine.patch.setenv("FAOPS_CUBIN_CACHE_MB", "0")
    yield "every process compiles its kernels again"


@breaks("cuda.emulator")
def no_compiler_for_the_emulator(machine: Machine) -> Iterator[str]:
    machine.program("clang++", "clang 17")
    yield ""
    machine.program("clang++", "cannot execute", code=126)
    yield "does not run: cannot execute"
