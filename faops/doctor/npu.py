"""Group npu: Ascend devices, their driver, CANN and torch_npu. Skipped where there is no sign of any of them."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from faops.doctor import probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "npu"
HUAWEI_VENDOR = "0x19e5"
ACCELERATOR = ("0x1200",)  # PCI class: processing accelerator
RUNTIME = "libascendcl.so"  # of CANN; torch_npu loads it
SETUP = ("ascend-toolkit/set_env.sh", "cann/set_env.sh", "nnae/set_env.sh")  # below an Ascend directory
NO_NPU = "no Ascend NPU: neither npu-smi nor torch-npu is installed"
# A row of `npu-smi info` that names a card: | 0     910B3    | OK            | ...
CARD_ROW = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|", re.MULTILINE)

Ask = Callable[[], tuple[bool, str]]


def checks() -> list[Check]:
    ask = functools.cache(_ask)
    return [
        Check("npu.card", GROUP, "an Ascend card in this machine has its driver", check_card),
        Check("npu.health", GROUP, "the Ascend driver answers and calls every NPU healthy", partial(check_health, ask)),
        Check("npu.package", GROUP, "torch-npu is installed and made for this PyTorch", check_package),
        Check("npu.cann", GROUP, "CANN is set up in this shell", check_cann),
        Check("npu.visible", GROUP, "no NPU is hidden from programs", check_visible),
        Check("npu.devices", GROUP, "PyTorch reaches the Ascend devices, where there are any", check_devices),
    ]


def _ask() -> tuple[bool, str]:
    smi = probes.program("npu-smi")
    assert smi is not None
    return probes.output_of([smi, "info"])


def check_card() -> Result:
    cards = probes.pci_cards(HUAWEI_VENDOR, ACCELERATOR)
    if not cards:
        return skipped("no Ascend card on the PCI bus")
    if probes.program("npu-smi") or probes.installed("torch-npu"):
        return ok(f"{len(cards)} on the PCI bus", *cards)
    if probes.in_container():
        mend = "docker run --device /dev/davinci0 --device /dev/davinci_manager -v /usr/local/Ascend:/usr/local/Ascend"
        return warn("there is an Ascend card, but this container has no driver for it", *cards, fix=mend)
    mend = "sudo sh Ascend-hdk-*-npu-driver_*.run --full --install-for-all"
    return warn("there is an Ascend card, but no driver for it", *cards, fix=mend)


def check_health(ask: Ask) -> Result:
    if probes.program("npu-smi") is None:
        return skipped(NO_NPU if probes.installed("torch-npu") is None else "npu-smi is not installed")
    runs, said = ask()
    if not runs:
        join = "sudo usermod -aG HwHiAiUser $USER && newgrp HwHiAiUser"  # the group that may open the device files
        return fail("npu-smi cannot talk to the driver", *said.splitlines()[:3], fix=join)
    rows = CARD_ROW.findall(said)
    details = tuple(f"{index} {name}: {health}" for index, name, health in rows)
    ill = [index for index, _, health in rows if health != "OK"]
    if ill:
        return warn(f"NPU {', '.join(ill)} is not healthy", *details, fix=f"npu-smi info -t health -i {ill[0]}")
    return ok(f"{len(rows)} healthy", *details)


def check_package() -> Result:
    package, version = probes.installed("torch-npu"), _numbers(str(torch.__version__))
    if package is None:
        if probes.program("npu-smi") is None:
            return skipped(NO_NPU)
        return warn("npu-smi is installed, but torch-npu is not", fix=f"pip install torch-npu=={version}")
    needed = probes.required("torch-npu", "torch") or _numbers(package)
    if _numbers(needed) != version:
        return fail(f"torch-npu {package} is made for PyTorch {needed}, not {torch.__version__}",
                    fix=f"pip install torch=={_numbers(needed)}")  # fmt: skip
    return ok(f"torch-npu {package} with PyTorch {torch.__version__}")


def _numbers(version: str) -> str:
    """2.7.1 of 2.7.1.post2 or 2.7.1+cpu."""
    found = re.match(r"\d+(?:\.\d+){0,2}", version)
    return found.group() if found else version


def check_cann() -> Result:
    if probes.installed("torch-npu") is None:
        return skipped("torch-npu is not installed" if probes.program("npu-smi") else NO_NPU)
    home = os.environ.get("ASCEND_HOME_PATH")
    if not home:
        return fail("ASCEND_HOME_PATH is not set: CANN's set_env.sh was not read", fix=_source())
    if not Path(home).is_dir():
        return fail(f"ASCEND_HOME_PATH={home} is no directory", fix=_source())
    if not probes.library(RUNTIME):
        return fail(f"{RUNTIME} cannot be loaded, though ASCEND_HOME_PATH={home} is there", fix=_source())
    return ok(f"CANN {_cann_version(Path(home))} at {home}")


def _source() -> str:
    """The command that sets up CANN, with the file that is there, or else its usual place."""
    folders = (probes.ROOT / "usr/local/Ascend", Path.home() / "Ascend")
    found = [folder / name for folder in folders for name in SETUP if (folder / name).is_file()]
    return f"source {found[0] if found else '/usr/local/Ascend/ascend-toolkit/set_env.sh'}"


def _cann_version(home: Path) -> str:
    for path in sorted(home.glob("*/ascend_toolkit_install.info")):
        found = re.search(r"^version=(\S+)", path.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found.group(1)
    return "of unknown version"


def check_visible() -> Result:
    if probes.program("npu-smi") is None and probes.installed("torch-npu") is None:
        return skipped(NO_NPU)
    value = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if value is None:
        return ok("ASCEND_RT_VISIBLE_DEVICES is not set")
    if value.strip() in ("", "-1"):
        return warn(f"ASCEND_RT_VISIBLE_DEVICES={value} hides every NPU", fix="unset ASCEND_RT_VISIBLE_DEVICES")
    return ok(f"ASCEND_RT_VISIBLE_DEVICES={value}")


def check_devices() -> Result:
    package = probes.installed("torch-npu")
    if package is None:
        return skipped("torch-npu is not installed" if probes.program("npu-smi") else NO_NPU)
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # torch_npu raises ImportError, OSError or RuntimeError without a working CANN
        return fail(f"torch-npu {package} cannot be imported: {error}", fix=_source())
    npu = getattr(torch, "npu", None)
    if npu is None or not npu.is_available():
        return fail(f"torch-npu {package} finds no device", fix="faops doctor npu.card npu.health npu.visible")
    count = int(npu.device_count())
    return ok(f"torch-npu {package} reaches {count}", *(f"npu:{i} {npu.get_device_name(i)}" for i in range(count)))
