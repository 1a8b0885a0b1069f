"""How the checks of npu are broken; see :mod:`tests.doctor.breakages`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from faops.doctor import probes
from faops.doctor.npu import packages
from tests.doctor import ascend
from tests.doctor.breakages import breaks
from tests.doctor.machine import Machine

# --- the card and its driver ------------------------------------------------------------------------------------------


@breaks("npu.card")
def card_without_driver(machine: Machine) -> Iterator[str]:
    machine.pci("0x19e5", "0x120000")
    machine.program("npu-smi", ascend.SMI)
    yield ""
    (machine.bin / "npu-smi").unlink()
    yield "but no driver for it"


@breaks("npu.files")
def container_without_device_files(machine: Machine) -> Iterator[str]:
    machine.ascend()
    machine.file(".dockerenv")
    yield ""
    for path in (machine.root / "dev").iterdir():
        path.unlink()
    yield "missing in /dev: davinci_manager, devmm_svm, hisi_hdc, davinci0"


@breaks("npu.files")
def no_device_but_the_manager(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    for name in ("davinci0", "davinci1"):
        (machine.root / "dev" / name).unlink()
    yield "missing in /dev: davinci0"


@breaks("npu.files")
def device_files_of_another_group(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    usual = os.access
    machine.patch.setattr(os, "access", lambda path, mode: Path(path).name != "davinci1" and usual(path, mode))
    yield "no right to use in /dev: davinci1"


@breaks("npu.health")
def ill_npu(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.program("npu-smi", ascend.SMI.replace("| OK   ", "| Alarm", 1))
    yield "NPU 0 is not healthy"


@breaks("npu.health")
def npu_smi_without_rights(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.program("npu-smi", "dcmi module initialize failed. ret is -8005", code=255)
    yield "npu-smi cannot talk to the driver"


@breaks("npu.health")
def npu_smi_that_hangs(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.setattr(probes, "TIMEOUT_SECONDS", 0.2)
    machine.program("npu-smi", ascend.SMI, seconds=30)
    yield "npu-smi cannot talk to the driver"


@breaks("npu.health")
def npu_smi_without_an_npu(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.program("npu-smi", "\n".join(ascend.SMI.splitlines()[:6]))
    yield "names no NPU"


@breaks("npu.visible")
def hidden_npus(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.setenv("ASCEND_RT_VISIBLE_DEVICES", "")
    yield "hides every NPU"


@breaks("npu.visible")
def npu_that_is_not_there(machine: Machine) -> Iterator[str]:
    machine.ascend()
    machine.patch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1, 0")
    yield ""
    machine.patch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,2")
    yield "names NPU '2', but there are 2"


# --- CANN and packages ------------------------------------------------------------------------------------------------


@breaks("npu.cann")
def set_env_not_sourced(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.delenv("ASCEND_HOME_PATH")
    yield "ASCEND_HOME_PATH is not set"


@breaks("npu.cann")
def no_path_of_the_operators(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.delenv("ASCEND_OPP_PATH")
    yield "ASCEND_OPP_PATH is not set"


@breaks("npu.cann")
def cann_moved_away(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.setenv("ASCEND_HOME_PATH", "/nowhere")
    yield "ASCEND_HOME_PATH=/nowhere is no directory"


def _without_library(name: str) -> None:
    def broken(machine: Machine) -> Iterator[str]:
        machine.ascend()
        yield ""
        machine.libraries.remove(name)
        yield f"cannot be loaded: {name}"

    broken.__name__ = f"without_{name}"
    breaks("npu.libraries")(broken)


for _name in ("libascendcl.so", "libhccl.so", "libopapi.so"):
    _without_library(_name)


@breaks("npu.package")
def torch_npu_of_another_torch(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.setattr(torch, "__version__", "2.6.0")
    yield "not 2.6.0"


@breaks("npu.package")
def npu_without_its_package(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    for path in machine.site.glob("torch_npu-*"):
        path.rename(machine.root / path.name)
    yield "torch-npu is not"


@breaks("npu.pairing")
def another_cann(machine: Machine) -> Iterator[str]:
    machine.ascend("2.9.0", cann="8.5.0")
    yield ""
    for path in (machine.root / "usr/local/Ascend/cann").glob("*/*.info"):
        path.write_text("version=8.3.RC1\n")
    yield "torch-npu 2.9.0 with CANN 8.3.RC1, but it is made for CANN 8.5.0"


def triton_ascend(machine: Machine, *requires: str) -> Path:
    """Install triton-ascend, of one file, and give that."""
    file = machine.site / "triton/backends/ascend/compiler.py"
    file.parent.mkdir(parents=True)
    file.write_text("# triton-ascend\n")
    machine.package("triton-ascend", "3.2.0", *requires)
    record = machine.site / "triton_ascend-3.2.0.dist-info/RECORD"
    record.write_text(f"triton/backends/ascend/compiler.py,sha256=x,{file.stat().st_size}\n")
    return file


@breaks("npu.triton")
def triton_over_triton_ascend(machine: Machine) -> Iterator[str]:
    machine.ascend()
    machine.package("triton", "3.5.0")
    file = triton_ascend(machine, "triton==3.5.0")
    yield ""
    file.write_text("# of another package\n")
    yield "1 files of triton-ascend 3.2.0 are missing or of another package; triton 3.5.0 is installed too"


@breaks("npu.triton")
def triton_beside_triton_ascend(machine: Machine) -> Iterator[str]:
    machine.ascend()
    machine.package("triton", "3.5.0")
    triton_ascend(machine, "triton==3.5.0")
    yield ""
    (machine.site / "triton_ascend-3.2.0.dist-info/METADATA").write_text("Name: triton-ascend\nVersion: 3.2.0\n")
    yield "triton 3.5.0 is installed beside triton-ascend 3.2.0"


# --- torch_npu itself -------------------------------------------------------------------------------------------------


def importing(machine: Machine, says: str = "", code: int = 0) -> None:
    """What `import torch` says in a process of its own, with torch_npu loaded by itself."""
    machine.patch.delitem(sys.modules, "torch_npu")
    program = machine.program("import-torch", ends=f'echo "{says}" >&2; exit {code}')
    machine.patch.setattr(packages, "IMPORT", (str(program),))


@breaks("npu.autoload")
def torch_that_dies_of_torch_npu(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    importing(machine, "ImportError: libhccl.so: cannot open shared object file", code=1)
    yield "`import torch` fails: ImportError: libhccl.so: cannot open shared object file"


@breaks("npu.autoload")
def loading_turned_off(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    importing(machine)
    machine.patch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    yield "TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set"


@breaks("npu.autoload")
def entry_point_missing(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    importing(machine)
    yield "does not bring torch_npu"


@breaks("npu.import")
def torch_npu_that_raises(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.torch_npu({"stage": "import", "error": "ImportError: libhccl.so: cannot open shared object file"})
    yield "`import torch_npu` fails: ImportError: libhccl.so"


@breaks("npu.import")
def torch_npu_that_crashes(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.torch_npu(ends="kill -SEGV $$")
    yield "crashed: SIGSEGV"


@breaks("npu.operators")
def old_operators(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    lacking = {"lacking": {"attention sinks": "npu_fusion_attention takes no sink"}}
    machine.torch_npu(*ascend.told(lambda stages: stages["operators"].update(lacking)))
    yield "has no operator for attention sinks"


@breaks("npu.devices")
def npus_out_of_reach(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.torch_npu(*ascend.told(lambda stages: stages["devices"].update(devices=[])))
    yield "finds no device"


@breaks("npu.devices")
def chip_of_tomorrow(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    newer = {**ascend.DEVICE, "name": "Ascend970", "soc": 280, "arch": "ascend-unknown"}
    machine.torch_npu(*ascend.told(lambda stages: stages["devices"].update(devices=[newer])))
    yield "faops does not know this chip"


@breaks("npu.devices")
def driver_that_hangs(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.patch.setattr("faops.doctor.npu.probe.LIMIT_SECONDS", 0.5)
    machine.torch_npu(*ascend.told(until="devices"), ends=ascend.HANG)
    yield "looking for devices: the process that tried it ended early: probe-npu timed out: no answer within 0.5 s"


@breaks("npu.bfloat16")
def chip_without_bfloat16(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    without = {"name": "Ascend310P3", "expected": False, "supported": False, "right": False}
    machine.torch_npu(*ascend.told(lambda stages: stages["bfloat16"].update(without)))
    yield "Ascend310P3 has no bfloat16"


@breaks("npu.bfloat16")
def wrong_products_in_bfloat16(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.torch_npu(*ascend.told(lambda stages: stages["bfloat16"].update(right=False)))
    yield "a bfloat16 matrix product of Ascend910B3 is wrong"


@breaks("npu.bfloat16")
def bfloat16_that_is_denied(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    machine.torch_npu(*ascend.told(lambda stages: stages["bfloat16"].update(supported=False, right=False)))
    yield "torch_npu says that it has not"


@breaks("npu.numerics")
def wrong_attention(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    wrong = {**ascend.TRIED, "error": float("nan")}
    machine.torch_npu(*ascend.told(lambda stages: stages["numerics"].update(tried=[ascend.TRIED, wrong])))
    yield "wrong result: npu_fusion_attention in float16: max error nan"


@breaks("npu.numerics")
def operator_that_is_refused(machine: Machine) -> Iterator[str]:
    machine.ascend()
    yield ""
    refused = {"stage": "numerics", "error": "RuntimeError: call aclnnFlashAttentionScore failed, error code is 561103"}
    machine.torch_npu(*ascend.told(until="numerics"), refused)
    yield "a small attention fails: RuntimeError: call aclnnFlashAttentionScore failed"
