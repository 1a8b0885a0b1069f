"""Is this machine in order for faops? Checks in groups; each finding that is not fine says which command mends it.

Checks look and do not change anything: the one file that is written, to see whether the cache can be, is removed.
"""

from __future__ import annotations

from collections.abc import Iterable

from faops.doctor import cache, cuda, driver, kernels, npu, python, settings, torch, triton
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
    "kernels": kernels,
}
GROUPS: tuple[str, ...] = tuple(_MODULES)


def checks() -> list[Check]:
    """All checks, group by group. Loads the registry, since every kernel is a check."""
    return [check for module in _MODULES.values() for check in module.checks()]


def select(names: Iterable[str], among: list[Check]) -> list[Check]:
    """The checks that ``names`` (of checks or groups) mean, in their usual order; all of them for no names.

    Raises ArgumentError for a name that is neither.
    """
    wanted = list(names)
    for name in wanted:
        if not any(name in (check.id, check.group) for check in among):
            expected = f"a group ({', '.join(GROUPS)}) or a check (`faops doctor --list-checks`)"
            raise ArgumentError("check", repr(name), expected)
    return [check for check in among if not wanted or check.id in wanted or check.group in wanted]
