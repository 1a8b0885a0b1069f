"""Group kernels: every backend loads, and every kernel that runs here computes what the float64 oracle computes."""

from __future__ import annotations

import functools

import torch

from faops import registry
from faops.device import detect
from faops.doctor import accelerators, trial
from faops.doctor.check import Check, Result, fail, ok, skipped
from faops.registry import Kernel, Rejected

GROUP = "kernels"
LIMIT_SECONDS = 300.0  # the first call of a kernel compiles it, for the emulator with g++
REINSTALL = "pip install --upgrade --force-reinstall faops"


def checks() -> list[Check]:
    """One check for loading, and one a kernel. Where loading itself breaks, the first check says so."""
    found = [Check("kernels.backends", GROUP, "every backend can be loaded", check_backends)]
    try:
        kernels = registry.kernels()
    except Exception:
        return found
    for kernel in kernels:
        purpose = f"{kernel.id} agrees with the float64 reference on a small problem"
        run = functools.partial(check_kernel, kernel)
        found.append(Check(f"kernels.{kernel.id}", GROUP, purpose, run, limit=LIMIT_SECONDS))
    return found


def check_backends() -> Result:
    try:
        kernels, failures = registry.kernels(), registry.failures()
    except Exception as error:
        return fail(f"the kernels cannot be loaded: {type(error).__name__}: {error}", fix=REINSTALL)
    if failures:
        reasons = (f"{name}: {reason}" for name, reason in failures.items())
        fix = f"pip install --upgrade --force-reinstall {' '.join(_distributions(failures))}"
        return fail(f"backends that cannot be loaded: {', '.join(failures)}", *reasons, fix=fix)
    if not kernels:
        return fail("no kernel is registered", fix=REINSTALL)
    return ok(f"{len(kernels)} kernels of {', '.join(registry.backends())}")


def _distributions(failures: dict[str, str]) -> list[str]:
    """Names of the packages whose entry points failed."""
    from importlib.metadata import entry_points

    entries = entry_points(group=registry.ENTRY_POINT_GROUP)
    return sorted({entry.dist.name for entry in entries if entry.name in failures and entry.dist} or failures)


def check_kernel(kernel: Kernel) -> Result:
    """Run ``kernel`` on every device of this machine that it accepts a small problem for."""
    details: list[str] = []
    refusals: dict[torch.device, list[tuple[str, ...]]] = {}
    for device in _devices():
        profile = detect(device)
        for problem in trial.problems(kernel.op, profile):
            decision = kernel.check(problem, profile)
            if not isinstance(decision, Rejected):
                break
            refusals.setdefault(device, []).append(decision.reasons)
        else:
            continue
        try:
            outcome = trial.run(kernel, problem, device)
        except Exception as error:
            text = f"{problem} on {device}: {type(error).__name__}: {error}"
            return fail(f"does not run: {text}", fix=REINSTALL)
        details.append(f"{device}: max error {outcome.error:.1e}, allowed {outcome.allowed:.1e}, {problem}")
        if not outcome.passed:
            return fail(f"wrong result: {details[-1]}", fix=REINSTALL)
    if not details:
        return _refused(refusals)
    return ok(details[0], *details[1:])


def _refused(refusals: dict[torch.device, list[tuple[str, ...]]]) -> Result:
    """Why a kernel runs nowhere here: what it says of every problem, or else all that it says of any."""
    details = dict.fromkeys(_line(device, reasons) for device, each in refusals.items() for reasons in each)
    always = {device: _common(each) for device, each in refusals.items()}
    if all(always.values()):
        return skipped(f"does not run here: {', '.join(_line(*each) for each in always.items())}", *details)
    return skipped("accepts no small problem on a device of this machine", *details)


def _line(device: torch.device, reasons: tuple[str, ...]) -> str:
    return f"{device}: {'; '.join(reasons)}"


def _common(refusals: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The reasons that are in all of them."""
    return tuple(reason for reason in refusals[0] if all(reason in other for other in refusals))


def _devices() -> list[torch.device]:
    """The devices that kernels are tried on: the CPU and the first of each kind of accelerator."""
    return list({device.type: torch.device(device.type) for device in accelerators.present()}.values())
