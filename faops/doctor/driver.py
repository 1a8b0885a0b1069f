"""Group driver: NVIDIA cards, their driver, and whether PyTorch reaches them.

nvidia-smi is asked once, and the checks that need its answer share it.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from functools import partial

import torch

from faops.doctor import nvidia, probes
from faops.doctor.check import Check, Result, fail, ok, skipped, warn

GROUP = "driver"
NVIDIA_VENDOR = "0x10de"
GRAPHICS = ("0x0300", "0x0302")  # PCI classes: VGA controller, 3D controller
DEVICE_FILES = ("nvidiactl", "nvidia-uvm", "nvidia0")
NOTHING = ("", "-1", "none", "void", "nodevfiles")  # values of CUDA_VISIBLE_DEVICES that leave no card
FULL_PART, FULL_MIB = 0.05, 1024  # a card with less free memory than both is full
NO_DRIVER = "no NVIDIA driver"
INSTALL = "sudo apt-get install nvidia-driver-580"  # the first that takes code of CUDA 13
GIVE = "docker run --gpus all"

Ask = Callable[[], nvidia.Report]


def checks() -> list[Check]:
    ask = functools.cache(nvidia.ask)
    return [
        Check("driver.card", GROUP, "an NVIDIA card in this machine has its driver", check_card),
        Check("driver.nvidia", GROUP, "the NVIDIA driver answers, where there is one", partial(check_nvidia, ask)),
        Check("driver.files", GROUP, "the device files of the NVIDIA driver can be opened", check_files),
        Check(
            "driver.version", GROUP, "the NVIDIA driver is new enough for PyTorch's CUDA", partial(check_version, ask)
        ),
        Check("driver.visible", GROUP, "no NVIDIA GPU is hidden from programs", partial(check_visible, ask)),
        Check("driver.cuda", GROUP, "PyTorch reaches the NVIDIA GPUs, where there are any", check_cuda),
        Check("driver.mode", GROUP, "compute mode and MIG let programs use the GPUs", partial(check_mode, ask)),
        Check("driver.memory", GROUP, "the GPUs have memory free", partial(check_memory, ask)),
        Check("driver.health", GROUP, "no GPU is slowed down or has memory errors", partial(check_health, ask)),
    ]


def check_card() -> Result:
    cards = probes.pci_cards(NVIDIA_VENDOR, GRAPHICS)
    if not cards:
        return skipped("no NVIDIA card on the PCI bus")
    text = f"{_count(len(cards), 'NVIDIA card')} on the PCI bus"
    if nvidia.driver_present() or torch.cuda.is_available():
        return ok(text, *cards)
    if probes.in_container():
        return warn(f"{text}, but this container has no driver for it", *cards, fix=GIVE)
    return warn(f"{text}, but no driver for it", *cards, fix=INSTALL)


def check_nvidia(ask: Ask) -> Result:
    report = ask()
    if not report.present:
        if probes.library(nvidia.LIBRARY):
            return ok(f"{nvidia.LIBRARY} is there (nvidia-smi is not)")
        return skipped("no NVIDIA GPU: the torch backend serves the CPU")
    if report.reason:
        restart = "mismatch" in report.reason  # "Driver/library version mismatch": an update without a restart
        mend = "sudo reboot" if restart else "sudo modprobe nvidia && nvidia-smi"
        return fail("nvidia-smi cannot talk to the driver", *report.reason.splitlines()[:3], fix=mend)
    return ok(f"driver {report.driver}, {_count(len(report.cards), 'NVIDIA GPU')}", *map(str, report.cards))


def check_files() -> Result:
    """A container may have the driver's library without its device files, or no right to them."""
    if not probes.library(nvidia.LIBRARY):
        return skipped(NO_DRIVER)
    if torch.cuda.is_available():
        return ok("PyTorch has opened them")
    directory = probes.ROOT / "dev"
    if (directory / "dxg").exists():
        return ok("/dev/dxg is there: Windows Subsystem for Linux")
    paths = [directory / name for name in DEVICE_FILES]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        mend = GIVE if probes.in_container() else "sudo nvidia-modprobe -u -c=0"
        return fail(f"missing in /dev: {', '.join(missing)}", fix=mend)
    closed = [path.name for path in paths if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        mend = "sudo usermod -aG $(stat -c %G /dev/nvidia0) $USER && newgrp"
        return fail(f"no right to use in /dev: {', '.join(closed)}", fix=mend)
    return ok(f"in /dev: {', '.join(DEVICE_FILES)}")


def check_version(ask: Ask) -> Result:
    driver = ask().cuda
    if not driver:
        return skipped(NO_DRIVER if not ask().present else "nvidia-smi tells no CUDA version")
    if torch.version.cuda is None:
        return skipped("PyTorch is built without CUDA")
    text = f"driver for CUDA {driver}, PyTorch built for CUDA {torch.version.cuda}"
    needed, taken = (int(version.partition(".")[0]) for version in (torch.version.cuda, driver))
    if needed > taken and not torch.cuda.is_available():
        advice = f"a PyTorch that is built for CUDA {taken} would do as well"
        return fail(f"the driver is too old: {text}", advice, fix=INSTALL)
    return ok(text)


def check_visible(ask: Ask) -> Result:
    """CUDA ignores the first entry that names no card, and all that follow."""
    if not nvidia.driver_present():
        return skipped(NO_DRIVER)
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return ok("CUDA_VISIBLE_DEVICES is not set")
    mend = "unset CUDA_VISIBLE_DEVICES"
    if value.strip().lower() in NOTHING:
        return warn(f"CUDA_VISIBLE_DEVICES={value} hides every GPU", fix=mend)
    count = len(ask().cards)
    wrong = [part for part in value.split(",") if part.strip().lstrip("-").isdecimal() and not 0 <= int(part) < count]
    if count and wrong:
        text = f"CUDA_VISIBLE_DEVICES={value} names GPU {wrong[0]}, but there are {count}, counted from 0"
        return warn(text, "this entry and all after it are ignored", fix=mend)
    return ok(f"CUDA_VISIBLE_DEVICES={value}")


def check_cuda() -> Result:
    if torch.version.hip:
        return ok(f"PyTorch is built for ROCm {torch.version.hip}")
    if not nvidia.driver_present():
        return skipped(NO_DRIVER)
    if torch.version.cuda is None:
        reinstall = "pip uninstall --yes torch && pip install torch"
        return warn(f"there is an NVIDIA driver, but PyTorch {torch.__version__} is built without CUDA", fix=reinstall)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = [str(warning.message) for warning in caught]
        mend = "unset CUDA_VISIBLE_DEVICES" if "CUDA_VISIBLE_DEVICES" in os.environ else "faops doctor driver -v"
        return fail(f"PyTorch (CUDA {torch.version.cuda}) finds no GPU", *said, fix=mend)
    return _check_architectures()


def _check_architectures() -> Result:
    """Whether this build of PyTorch has code for every card in the machine."""
    built = torch.cuda.get_arch_list()
    cards, unserved = [], []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        cards.append(f"cuda:{index} {torch.cuda.get_device_name(index)} (sm_{major}{minor})")
        if not _serves(built, major, minor):
            unserved.append(cards[-1])
    if unserved:
        text = f"PyTorch {torch.__version__} has no code for {', '.join(unserved)}"
        return fail(text, f"built for {', '.join(built)}", fix="pip install --upgrade torch")
    return ok(f"PyTorch reaches {len(cards)} with CUDA {torch.version.cuda}", *cards)


def _serves(built: list[str], major: int, minor: int) -> bool:
    """Code for sm_XY runs on the same major from minor Y on; PTX (compute_XY) is compiled for anything newer."""
    for name in built:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        of_major, of_minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and of_major == major and of_minor <= minor:
            return True
        if kind == "compute" and (of_major, of_minor) <= (major, minor):
            return True
    return False


def check_mode(ask: Ask) -> Result:
    report = ask()
    if not report.cards:
        return skipped(NO_DRIVER if not report.present else "nvidia-smi names no GPU")
    details = tuple(
        f"{card}: compute mode {card.compute_mode}, MIG {card.mig}, persistence {card.persistence}"
        for card in report.cards
    )
    for card in report.cards:
        if card.mig == "Enabled" and not card.slices:
            text = f"GPU {card.index} is in MIG mode, but no slice of it was made"
            return fail(text, *details, fix=f"sudo nvidia-smi -i {card.index} -mig 0")
        if card.compute_mode == "Prohibited":
            return fail(f"GPU {card.index} takes no programs", *details, fix=_default_mode(card))
        if card.compute_mode.startswith("Exclusive"):
            text = f"GPU {card.index} takes one process at a time, while `faops tune` measures in a process of its own"
            return warn(text, *details, fix=_default_mode(card))
    return ok(f"{_count(len(report.cards), 'GPU')} can be used by any program", *details)


def _default_mode(card: nvidia.Card) -> str:
    return f"sudo nvidia-smi -i {card.index} -c DEFAULT"


def check_memory(ask: Ask) -> Result:
    told = [card for card in ask().cards if card.total_mib]
    if not told:
        return skipped(NO_DRIVER if not ask().present else "nvidia-smi tells no memory")
    details = tuple(f"{card}: {card.free_mib} MiB free" for card in told)
    full = [card for card in told if card.free_mib < min(FULL_MIB, FULL_PART * card.total_mib)]
    if full:
        text = f"GPU {full[0].index} is full: {full[0].free_mib} of {full[0].total_mib} MiB free"
        users = "nvidia-smi --query-compute-apps=pid,used_memory --format=csv"
        return warn(text, *details, "the command below lists who uses it", fix=users)
    return ok(", ".join(f"GPU {card.index} {card.free_mib:,} MiB free" for card in told), *details)


def check_health(ask: Ask) -> Result:
    report = ask()
    if not report.cards:
        return skipped(NO_DRIVER if not report.present else "nvidia-smi names no GPU")
    for card in report.cards:
        if card.memory_errors:
            text = f"GPU {card.index} had {card.memory_errors} memory errors that could not be corrected"
            return fail(text, "its results cannot be trusted", fix=f"sudo nvidia-smi --gpu-reset -i {card.index}")
    slowed = [card for card in report.cards if card.slowdowns]
    if slowed:
        details = (f"GPU {card.index}: {', '.join(card.slowdowns)}" for card in slowed)
        text = f"GPU {slowed[0].index} is slowed down: timings taken now do not hold later"
        return warn(text, *details, fix=f"nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER -i {slowed[0].index}")
    return ok("no slow-down, no memory errors")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
