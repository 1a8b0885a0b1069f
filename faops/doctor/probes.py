"""Guarded looks at the machine: none raises, none changes anything, and none waits for long."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_SECONDS = 20.0  # nvidia-smi on a machine with eight cards and no persistence daemon takes most of this
GRACE_SECONDS = 1.0  # for a killed program to end
ROOT = Path("/")  # where /dev, /proc and /sys are


def program(name: str) -> str | None:
    """Path of a program on PATH, or None."""
    return shutil.which(name)


def output_of(command: Sequence[str], seconds: float | None = None) -> tuple[bool, str]:
    """Whether a program ended well within ``seconds`` (None: TIMEOUT_SECONDS), and what it printed.

    Where it could not be run, or did not end in time, that is said instead.
    """
    limit = TIMEOUT_SECONDS if seconds is None else seconds
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _abandon(process)
        return False, f"{Path(command[0]).name} timed out: no answer within {limit:g} s"
    return process.returncode == 0, (out or err).strip()


def _abandon(process: subprocess.Popen[str]) -> None:
    """Kill a process without waiting for its end, which never comes while it waits for a broken driver."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def library(name: str) -> bool:
    """Whether the dynamic loader finds a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def required(distribution: str, package: str) -> str | None:
    """The exact version of ``package`` that an installed distribution asks for, such as "3.5.0"; None for none."""
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pattern = rf"{re.escape(package)}\s*\(?==\s*([\w.+]+)\)?\s*(?:;.*)?"
    found = (re.fullmatch(pattern, text) for text in requirements)
    return next((match.group(1) for match in found if match), None)


def pci_cards(vendor: str, classes: tuple[str, ...]) -> list[str]:
    """Addresses of the PCI devices of ``vendor``, such as "0x10de", whose class begins with one of ``classes``.

    Those handed to a virtual machine (driver vfio-pci) are not counted: they are not for this system. [] where the
    system has no such list.
    """
    found = []
    for device in sorted(_listed(ROOT / "sys/bus/pci/devices")):
        handed_on = os.path.basename(os.path.realpath(device / "driver")) == "vfio-pci"
        if _text(device / "vendor") == vendor and _text(device / "class").startswith(classes) and not handed_on:
            found.append(device.name)
    return found


def in_container() -> bool:
    """Whether this system is a container, as far as the usual marks tell."""
    marks = (ROOT / ".dockerenv", ROOT / "run/.containerenv")
    return any(mark.exists() for mark in marks) or "KUBERNETES_SERVICE_HOST" in os.environ


def can_be_written(directory: Path) -> bool:
    """Whether files can be made in ``directory``, or in the nearest one above it that is there. Writes nothing."""
    there = next((path for path in (directory, *directory.parents) if path.exists()), directory)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def filesystem(directory: Path) -> str:
    """Type of the file system that holds ``directory``, such as "ext4" or "nfs4"; "" where it is not told."""
    real, best, kind = os.path.realpath(directory), "", ""
    for line in _text(ROOT / "proc/self/mounts").splitlines():
        _, _, rest = line.partition(" ")
        mounted, _, after = rest.partition(" ")
        mounted = mounted.replace("\\040", " ")
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, after.partition(" ")[0]
    return kind


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
