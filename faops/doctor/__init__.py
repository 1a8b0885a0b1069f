"""Is this machine in order for faops? Checks in groups; each finding that is not fine says which command mends it.

Checks look and do not change anything: the files that are written, to see whether the cache can be written and locked,
are removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from faops.doctor import cache, cuda, daemon, driver, kernels, npu, python, settings, torch, triton
from faops.doctor.check import Check, Finding, Result, perform, worst
from faops.errors import ArgumentError

__all__ = ["GROUPS", "Check", "Finding", "Result", "checks", "perform", "select", "worst"]

_MODULES = {
    "python": python,
    "torch": torch,
    "driver": driver,
    "cuda": cuda,
    "triton": triton,
    "npu": npu,
    "cache": cache,
    "settings": settings,
    "daemon": daemon,
    "kernels": kernels,
}
GROUPS: tuple[str, ...] = tuple(_MODULES)


def checks() -> list[Check]:
    """All checks for one run, group by group. Loads the registry, since every kernel is a check."""
    return [check for module in _MODULES.values() for check in module.checks()]


def select(names: Iterable[str], among: list[Check]) -> list[Check]:
    """The checks that ``names`` mean, in their usual order; all of them for no names.

    A name is that of a check or the beginning of one (``cuda.nvrtc``, ``cuda``, ``kernels.triton``), or else the end
    of one (``nvrtc``, ``torch.sdpa_forward``). Raises ArgumentError for a name that is neither.
    """
    wanted = list(names)
    chosen = {check.id for name in wanted for check in _meant(name, among)}
    return [check for check in among if not wanted or check.id in chosen]


def _meant(name: str, among: list[Check]) -> list[Check]:
    found = [check for check in among if f"{check.id}.".startswith(f"{name}.")]
    found = found or [check for check in among if check.id.endswith(f".{name}")]
    if not found:
        expected = f"a group ({', '.join(GROUPS)}) or a check (`faops doctor --list-checks`)"
        raise ArgumentError("check", repr(name), expected)
    return found
