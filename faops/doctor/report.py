"""All that a bug report needs, as a block of Markdown to paste; and the findings counted, in a line."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch

from faops import cann, settings
from faops.device import DeviceProfile, detect
from faops.doctor import accelerators, probes
from faops.doctor.check import Finding
from faops.doctor.redact import redact
from faops.errors import FaopsError

T = TypeVar("T")

# status -> how many there are is told in these words, the gravest first.
WORDS = {"fail": "failed", "crashed": "crashed", "warn": "warning", "ok": "ok", "skipped": "skipped"}
MARKS = {"ok": "ok", "warn": "!", "fail": "x", "skipped": "-", "crashed": "?"}
PACKAGES = (
    "faops", "torch", "numpy", "triton", "triton-ascend", "torch-npu", "cupy-cuda12x", "cupy-cuda13x",
    "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc", "transformers",
)  # fmt: skip
# Variables that decide what runs and how fast, besides those of faops itself.
TELLING = re.compile(
    r"(FAOPS|CUDA|CUPY|NVIDIA|TRITON|TORCH|TORCHINDUCTOR|PYTORCH|OMP|MKL|KMP|ASCEND|NPU|HIP|ROCR)_\w+"
    r"|CC|CXX|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX"
)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings of each status."""
    statuses = [finding.result.status for finding in findings]
    return {status: statuses.count(status) for status in WORDS}  # type: ignore[arg-type]


def summary(findings: Sequence[Finding]) -> str:
    """The counts in words, such as "1 failed, 2 warnings, 30 ok"; those of 0 are left out."""
    parts = []
    for status, count in counts(findings).items():
        if count:
            parts.append(f"{count} {WORDS[status]}{'s' if status == 'warn' and count > 1 else ''}")
    return ", ".join(parts) or "nothing was checked"


def markdown(findings: Sequence[Finding], redacted: bool = True) -> str:
    """The block: a summary to click on, and below it versions, devices, settings and findings.

    ``redacted`` leaves out what :func:`faops.doctor.redact.redact` does, secrets among it.
    """
    system = f"{platform.system()} {platform.machine()}"
    title = (
        f"faops {probes.installed('faops')}, torch {torch.__version__}, Python {platform.python_version()}, {system}"
    )
    parts = [
        ("Versions", _pairs({"system": platform.platform(), **_versions()})),
        ("Devices", _pairs(_devices())),
        ("Settings and environment", _pairs(_shown(_settings(), redacted)) or "all defaults"),
        ("Findings", "\n".join(_shown(_findings(findings), redacted))),
    ]
    body = "\n\n".join(f"**{name}**\n\n{_fenced(_shown(text, redacted))}" for name, text in parts)
    return f"<details>\n<summary>{title}: {summary(findings)}</summary>\n\n{body}\n\n</details>"


def _shown(value: T, redacted: bool) -> T:
    return cast(T, redact(value)) if redacted else value


def _versions() -> dict[str, str]:
    found = {name: probes.installed(name) for name in PACKAGES}
    built = {"PyTorch's CUDA": torch.version.cuda, "PyTorch's ROCm": torch.version.hip, "CANN": cann.version()}
    return {name: version for name, version in {**found, **built}.items() if version}


def _devices() -> dict[str, str]:
    return {str(device): _described(detect(device)) for device in accelerators.present()}


def _described(device: DeviceProfile) -> str:
    threads = f", threads {device.threads}" if device.threads else ""
    return f"{device.name}, {device.arch}, {device.units} units{threads}, {device.memory_bytes / 2**30:.0f} GiB"


def _settings() -> dict[str, str]:
    """Settings from faops.yaml, and the variables that have a say."""
    found = {}
    for name in settings.SETTINGS:
        try:
            value = settings.resolve(name)
        except FaopsError as error:
            found[f"{name} (wrong)"] = str(error)
            continue
        if value.source == "file":
            found[f"{name} (faops.yaml)"] = str(value.value)
    return {**found, **{name: os.environ[name] for name in sorted(os.environ) if TELLING.fullmatch(name)}}


def _findings(findings: Sequence[Finding]) -> list[str]:
    """All that is not fine in full, the rest by name."""
    lines = []
    for finding in findings:
        result = finding.result
        if result.status not in ("ok", "skipped"):
            lines.append(f"{MARKS[result.status].ljust(2)} {finding.check.id}: {result.summary}")
            lines += [f"     {detail}" for detail in result.details]
            lines.append(f"     fix: {result.fix}")
    fine = [finding.check.id for finding in findings if finding.result.status == "ok"]
    if fine:
        lines.append(f"{MARKS['ok']} {', '.join(fine)}")
    absent: dict[str, list[str]] = {}
    for finding in findings:
        if finding.result.status == "skipped":
            absent.setdefault(finding.result.summary, []).append(finding.check.id)
    lines += [f"{MARKS['skipped'].ljust(2)} {', '.join(names)}: {reason}" for reason, names in absent.items()]
    slow = [f"{finding.check.id} {finding.seconds:.1f} s" for finding in findings if finding.seconds > 1]
    return [*lines, *([f"slow: {', '.join(slow)}"] if slow else [])]


def _pairs(pairs: Mapping[str, str]) -> str:
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs.items())


def _fenced(text: str) -> str:
    """A block that shows ``text`` as it is, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
