"""Guarded looks at the machine: none raises, none changes anything, and none waits for long."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 20.0  # nvidia-smi on a machine with eight cards and no persistence daemon takes most of this
GRACE_SECONDS = 1.0  # for a killed program to end
ROOT = Path("/")  # where /dev, /proc and /sys are


def program(name: str) -> str | None:
    """Path of a program on PATH, or None."""
    return shutil.which(name)


@dataclass(frozen=True)
class Ended:
    """How a program ended and what it printed: its exit status, None where it was not run or did not end in time.

    ``reason`` puts any status but 0 into words.
    """

    code: int | None
    out: str = ""
    err: str = ""
    reason: str = ""

    def last_lines(self, count: int = 5) -> tuple[str, ...]:
        """The last lines of what it printed, errors rather than results."""
        return tuple((self.err.strip() or self.out.strip()).splitlines()[-count:])


def run(command: Sequence[str], seconds: float | None = None, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a program, for no longer than ``seconds`` (None: TIMEOUT_SECONDS); with it end the programs it started.

    ``environment`` is added to that of this process. What was printed before a crash or the end of time is kept.
    """
    limit = TIMEOUT_SECONDS if seconds is None else seconds
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # a group of its own, which can be ended as a whole
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Ended(None, reason=str(error))
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        out, err = _abandon(process)
        return Ended(None, out, err, f"{Path(command[0]).name} timed out: no answer within {limit:g} s")
    return Ended(process.returncode, out, err, _how(process.returncode))


def _how(code: int) -> str:
    """What an exit status says of a program that did not end well; negative ones are signals."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"crashed: {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed: signal {-code}"


def output_of(command: Sequence[str], seconds: float | None = None) -> tuple[bool, str]:
    """Whether a program ended well within ``seconds`` (None: TIMEOUT_SECONDS), and what it printed.

    Where it could not be run, or did not end in time, that is said instead.
    """
    ended = run(command, seconds)
    if ended.code is None:
        return False, ended.reason
    return ended.code == 0, (ended.out or ended.err).strip()


def _abandon(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill a process and those it started, without waiting for an end that never comes while one waits for a driver.

    Gives what it had printed.
    """
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    out, err = "", ""
    with contextlib.suppress(subprocess.TimeoutExpired):
        out, err = process.communicate(timeout=GRACE_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return out, err


def library(name: str) -> bool:
    """Whether the dynamic loader finds a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


LOADING = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
        print(name, end="\\n", flush=True)
    except OSError as error:
        print(name, " ".join(str(error).split()), flush=True)
"""


def loading(names: Sequence[str]) -> dict[str, str]:
    """Why each shared library cannot be loaded, "" for one that can. Done in a process of its own, which may crash."""
    ended = run([sys.executable, "-S", "-c", LOADING, *names])
    said = dict(line.partition(" ")[::2] for line in ended.out.splitlines())
    return {name: said.get(name, ended.reason or "no answer") for name in names}


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def required(distribution: str, package: str) -> str | None:
    """The exact version of ``package`` that an installed distribution asks for; None for none.

    "3.5.0" stands for triton==3.5.0 as well as for triton==3.5.0.*, which takes builds and corrections of it too.
    """
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pattern = rf"{re.escape(package)}\s*\(?==\s*([\w.+]+?)(?:\.\*)?\)?\s*(?:;.*)?"
    found = (re.fullmatch(pattern, text) for text in requirements)
    return next((match.group(1) for match in found if match), None)


def pci_cards(vendor: str, classes: tuple[str, ...]) -> list[str]:
    """Addresses of the PCI devices of ``vendor``, such as "0x10de", whose class begins with one of ``classes``.

    Those handed to a virtual machine (driver vfio-pci) are not counted: they are not for this system. [] where the
    system has no such list.
    """
    found = []
    for device in sorted(listed(ROOT / "sys/bus/pci/devices")):
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


def listed(directory: Path) -> list[Path]:
    """What is in a directory; [] where it cannot be read."""
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
