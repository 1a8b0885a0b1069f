"""Group python: the interpreter and the platform it runs on."""

from __future__ import annotations

import platform
import sys

from faops.doctor.check import Check, Result, fail, ok, warn

GROUP = "python"
MINIMUM = (3, 10)
NEWEST_TESTED = (3, 13)
TESTED_SYSTEMS = ("Linux", "Darwin")


def checks() -> list[Check]:
    return [
        Check("python.version", GROUP, "Python is a version that faops supports", check_version),
        Check("python.platform", GROUP, "the operating system and processor are supported", check_platform),
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


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _new_environment(version: tuple[int, int]) -> str:
    return f"python{_text(version)} -m venv .venv && .venv/bin/pip install faops"
