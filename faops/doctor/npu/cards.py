"""Ascend cards, their driver and its device files: what is there before any of CANN or PyTorch comes in."""

from __future__ import annotations

import os
from collections.abc import Callable

from faops.doctor import probes
from faops.doctor.check import Result, fail, ok, skipped, warn
from faops.doctor.npu import smi
from faops.doctor.npu.signs import NO_NPU, expected

HUAWEI_VENDOR = "0x19e5"
ACCELERATOR = ("0x1200",)  # PCI class: processing accelerator
# Of each device (davinci0 and on), of their manager, of the memory they share with the host, and of the host's link to
# them. A system on a chip has svm0 in place of the last two.
MANAGER, SHARED, LINK, OF_A_SYSTEM = "davinci_manager", "devmm_svm", "hisi_hdc", "svm0"
INSTALL_DRIVER = "sudo sh Ascend-hdk-*-npu-driver_*.run --full --install-for-all"
GIVE = (
    "docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc"
    " -v /usr/local/Ascend/driver:/usr/local/Ascend/driver -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi"
)
JOIN = "sudo usermod -aG HwHiAiUser $USER && newgrp HwHiAiUser"  # the group that may open the device files

Ask = Callable[[], smi.Report]


def check_card() -> Result:
    cards = probes.pci_cards(HUAWEI_VENDOR, ACCELERATOR)
    if not cards:
        return skipped("no Ascend card on the PCI bus")
    if expected():
        return ok(f"{len(cards)} on the PCI bus", *cards)
    if probes.in_container():
        return warn("there is an Ascend card, but this container has no driver for it", *cards, fix=GIVE)
    return warn("there is an Ascend card, but no driver for it", *cards, fix=INSTALL_DRIVER)


def check_files() -> Result:
    """A container may have the driver's libraries without its device files, or no right to them."""
    if not expected():
        return skipped(NO_NPU)
    directory = probes.ROOT / "dev"
    devices = [path for path in sorted(probes.listed(directory)) if path.name.removeprefix("davinci").isdecimal()]
    needed = [OF_A_SYSTEM] if (directory / OF_A_SYSTEM).exists() else [SHARED, LINK]
    files = [directory / name for name in (MANAGER, *needed)]
    missing = [path.name for path in files if not path.exists()] + ([] if devices else ["davinci0"])
    if missing:
        mend = GIVE if probes.in_container() else INSTALL_DRIVER
        return fail(f"missing in /dev: {', '.join(missing)}", "no program can reach an NPU without them", fix=mend)
    closed = [path.name for path in (*files, *devices) if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        return fail(f"no right to use in /dev: {', '.join(closed)}", fix=JOIN)
    return ok(f"in /dev: {', '.join(path.name for path in (*devices, *files))}")


def check_health(ask: Ask) -> Result:
    report = ask()
    if not report.present:
        return skipped("npu-smi is not installed" if expected() else NO_NPU)
    if report.reason:
        mend = GIVE if probes.in_container() else JOIN
        return fail("npu-smi cannot talk to the driver", *report.reason.splitlines()[:3], fix=mend)
    details = tuple(map(str, report.npus))
    if not report.npus:
        return fail("npu-smi names no NPU", fix="faops doctor npu.card npu.files")
    ill = [npu for npu in report.npus if npu.health != "OK"]
    if ill:
        names = ", ".join(str(npu.index) for npu in ill)
        return warn(f"NPU {names} is not healthy", *details, fix=f"npu-smi info -t health -i {ill[0].index}")
    return ok(f"{len(report.npus)} healthy", *details)


def check_visible(ask: Ask) -> Result:
    if not expected():
        return skipped(NO_NPU)
    value = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if value is None:
        return ok("ASCEND_RT_VISIBLE_DEVICES is not set")
    mend = "unset ASCEND_RT_VISIBLE_DEVICES"
    if value.strip() in ("", "-1"):
        return warn(f"ASCEND_RT_VISIBLE_DEVICES={value} hides every NPU", fix=mend)
    count = ask().chips
    wrong = [part.strip() for part in value.split(",") if not _names_a_chip(part, count)]
    if count and wrong:
        text = f"ASCEND_RT_VISIBLE_DEVICES={value} names NPU {wrong[0]!r}, but there are {count}, counted from 0"
        return warn(text, fix=mend)
    return ok(f"ASCEND_RT_VISIBLE_DEVICES={value}")


def _names_a_chip(text: str, count: int) -> bool:
    return text.strip().isdecimal() and int(text) < count
