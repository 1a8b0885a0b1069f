"""Group python: the interpreter, the platform it runs on, and the packages it finds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator

from faops.doctor import probes
from faops.doctor.check import Check, Result, fail, ok, warn

GROUP = "python"
MINIMUM = (3, 10)
NEWEST_TESTED = (3, 13)
TESTED_SYSTEMS = ("Linux", "Darwin")
# Packages of which a second copy, found first or last, makes a program use other code than pip tells of.
WATCHED = (
    "faops", "torch", "triton", "triton-ascend", "numpy", "torch-npu", "transformers", "cupy-cuda12x", "cupy-cuda13x",
)  # fmt: skip


def checks() -> list[Check]:
    return [
        Check("python.version", GROUP, "Python is a version that faops supports", check_version),
        Check("python.platform", GROUP, "the operating system and processor are supported", check_platform),
        Check("python.environment", GROUP, "packages can be installed for this Python", check_environment),
        Check(
            "python.packages",
            GROUP,
            "the packages that faops uses are new enough, and there once",
            check_packages,
        ),
    ]


def check_version() -> Result:
    running = tuple(sys.version_info[:2])
    summary = f"Python {platform.python_version()} at {sys.executable}"
    if running < MINIMUM:
        return fail(f"{summary} is older than {_text(MINIMUM)}", fix=_new_environment(NEWEST_TESTED))
    if running > NEWEST_TESTED:
        return warn(f"{summary} is newer than what faops is tested with", fix=_new_environment(NEWEST_TESTED))
    return ok(summary)


def check_platform() -> Result:
    system, machine = platform.system(), platform.machine()
    summary = f"{system} {platform.release()} on {machine}"
    if sys.maxsize <= 2**32:
        return fail(f"{summary}: this Python is 32-bit, and torch needs 64-bit", fix=_new_environment(NEWEST_TESTED))
    if system not in TESTED_SYSTEMS:
        return warn(f"{summary} is not tested", "Windows Subsystem for Linux is a tested way", fix="wsl --install")
    return ok(summary)


def check_environment() -> Result:
    """Every fix that begins with pip installs for this Python only if it may, and if pip is this Python's."""
    if sys.prefix != sys.base_prefix:
        return ok(f"virtual environment {sys.prefix}")
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if os.path.exists(marker):
        text = "this Python belongs to the operating system, which lets pip install nothing into it"
        return warn(text, marker, fix=_new_environment((sys.version_info[0], sys.version_info[1])))
    return ok(f"no virtual environment; packages go to {sysconfig.get_path('purelib')}")


def check_packages() -> Result:
    found = {name: _copies(name) for name in WATCHED}
    twice = {name: copies for name, copies in found.items() if len({version for version, _ in copies}) > 1}
    if twice:
        details = (f"{name} {version} in {place}" for name in twice for version, place in twice[name])
        text = f"installed in different versions: {', '.join(twice)}; the first of each is used"
        return warn(text, *details, fix=f"pip uninstall --yes {' '.join(twice)}; pip install {' '.join(twice)}")
    old = [
        f"{name} {version} is older than {least}"
        for name, least in _least_versions()
        if (version := probes.installed(name)) and _parts(version) < _parts(least)
    ]
    if old:
        names = " ".join(f"'{name}>={least}'" for name, least in _least_versions() if any(name in text for text in old))
        return warn(f"too old for faops: {'; '.join(old)}", fix=f"pip install --upgrade {names}")
    return ok(", ".join(f"{name} {copies[0][0]}" for name, copies in found.items() if copies))


def _copies(name: str) -> list[tuple[str, str]]:
    """Version and directory of each copy of a distribution along the path, the one in use first."""
    found: dict[str, str] = {}
    for copy in importlib.metadata.distributions(name=name):
        found.setdefault(os.path.realpath(str(copy.locate_file(""))), copy.version)
    return [(version, place) for place, version in found.items()]


def _least_versions() -> Iterator[tuple[str, str]]:
    """The oldest version that faops takes of each package it needs or can use, from its own metadata."""
    try:
        requirements = importlib.metadata.requires("faops") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in requirements:
        if found := re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*\(?>=\s*([\d.]+)", text):
            yield found.group(1), found.group(2)


def _parts(version: str) -> tuple[int, ...]:
    """Numbers of a version for comparing: (2, 13, 0) of 2.13.0+cpu."""
    numbers = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in numbers.group().split(".") if part) if numbers else ()


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _new_environment(version: tuple[int, int]) -> str:
    return f"python{_text(version)} -m venv .venv && .venv/bin/pip install faops"
