"""From a problem and a device to a plan: which kernel runs, with which config, and why.

Order of preference: a forced backend, then the tuned winner of this problem, then the winner of the nearest tuned
shape on the same device, then the accepted kernel of highest priority with its default config. Nothing is ever
measured here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from faops import registry, settings
from faops.autotune import cache
from faops.device import DeviceProfile
from faops.errors import ArgumentError, NoKernelError
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, Kernel, Rejected

Source = Literal["tuned", "nearest", "default"]

MEMO_LIMIT = 8192  # plans kept; decoding makes a new length every step, so the memo is emptied when full
RECHECK_SECONDS = 1.0  # how often a running process looks for new winners on disk


@dataclass(frozen=True)
class Plan:
    """The kernel that will run and its config. ``source`` says how the config was found, ``detail`` in words."""

    kernel: Kernel
    config: Config
    source: Source
    detail: str
    forced: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel.id,
            "config": dict(self.config),
            "source": self.source,
            "detail": self.detail,
            "forced": self.forced,
        }


@dataclass
class _Memo:
    """Plans by problem; emptied when kernels are registered or the tuning cache changes on disk."""

    plans: dict[Any, Any] = field(default_factory=dict)
    generation: int = -1
    stamp: object = None
    recheck_at: float = 0.0


_memo = _Memo()


def memo() -> dict[Any, Any]:
    """The dict of memoised plans, valid now. Callers keep what they derive from a plan there, under their own keys."""
    now = time.monotonic()
    if now >= _memo.recheck_at or _memo.generation != registry.generation():
        stamp = cache.stamp()
        if stamp != _memo.stamp or _memo.generation != registry.generation():
            _memo.plans.clear()
            _memo.stamp = stamp
            _memo.generation = registry.generation()
        _memo.recheck_at = now + RECHECK_SECONDS
    if len(_memo.plans) >= MEMO_LIMIT:
        _memo.plans.clear()
    return _memo.plans


def forget() -> None:
    """Drop all memoised plans, so that the next call plans afresh."""
    _memo.plans.clear()
    _memo.recheck_at = 0.0


def plan(problem: AttentionProblem, device: DeviceProfile, backend: str = "") -> Plan:
    """The plan for ``problem``. Memoised.

    Raises ArgumentError for an unknown backend and NoKernelError, with every kernel's reasons, when none can run.
    """
    plans = memo()
    key = (problem, device, backend)
    found: Plan | None = plans.get(key)
    if found is None:
        found = plans[key] = _make_plan(problem, device, backend)
    return found


def _make_plan(problem: AttentionProblem, device: DeviceProfile, backend: str) -> Plan:
    forced = backend or str(settings.get("backend"))
    candidates = registry.kernels(problem.op)
    if forced:
        candidates = _forced(candidates, forced, problem)
    by_name = bool(forced) and candidates[0].matches(forced)
    accepted = runnable(candidates, problem, device, by_name)
    if settings.get("tuning"):
        winner = cache.lookup(problem, device, accepted)
        if winner is not None:
            return Plan(winner.kernel, winner.config, winner.source, winner.detail, bool(forced))
    kernel = accepted[0]
    return Plan(
        kernel, kernel.default_config(problem, device), "default", _default_words(kernel, problem, device), bool(forced)
    )


def _default_words(kernel: Kernel, problem: AttentionProblem, device: DeviceProfile) -> str:
    shipped = kernel.shipped(problem, device)
    return f"not tuned on this device; {shipped.words(device) if shipped else 'default chosen by rule'}"


def runnable(
    candidates: Sequence[Kernel], problem: AttentionProblem, device: DeviceProfile, forced: bool = False
) -> list[Kernel]:
    """The ``candidates`` that run ``problem``, in their order; without ``forced``, those that may be chosen unasked.

    Raises NoKernelError, with every kernel's reasons, when there are none.
    """
    accepted, rejections = [], {}
    for kernel in candidates:
        decision = kernel.check(problem, device)
        if isinstance(decision, Rejected):
            rejections[kernel.id] = decision.reasons
        elif forced or kernel.automatic(device):
            accepted.append(kernel)
        else:
            rejections[kernel.id] = (f"it runs here only when asked for: {on_request(kernel)}",)
    if not accepted:
        raise NoKernelError(problem, device.name, rejections)
    return accepted


def on_request(kernel: Kernel) -> str:
    """The argument that asks for a kernel's backend."""
    return f'backend="{kernel.backend}"'


def _forced(candidates: list[Kernel], backend: str, problem: AttentionProblem) -> list[Kernel]:
    """Kernels that a forced backend means.

    A backend without any backward kernel leaves backward open: (out, lse) of any forward suits any backward.
    """
    matching = [kernel for kernel in candidates if kernel.matches(backend)]
    if matching:
        return matching
    everything = registry.kernels()
    if not any(kernel.matches(backend) for kernel in everything):
        names = sorted({kernel.backend for kernel in everything})
        raise ArgumentError("backend", repr(backend), f"one of {', '.join(names)} or a kernel's name (`faops kernels`)")
    if problem.op == "backward":
        return candidates
    raise NoKernelError(problem, "any device", {backend: (f"has no kernel for {problem.op}",)})


@dataclass(frozen=True)
class Explanation:
    """Why a problem gets the plan it gets. ``str()`` is a readable account, ``as_dict`` is for programs."""

    problem: AttentionProblem
    device: DeviceProfile
    chosen: Plan | None
    error: str
    decisions: tuple[tuple[Kernel, Decision], ...]

    def verdict(self, kernel: Kernel, decision: Decision) -> tuple[str, ...]:
        """What a kernel says to the problem, in words."""
        if isinstance(decision, Rejected):
            return decision.reasons
        return ("accepts" if kernel.automatic(self.device) else f"accepts, with {on_request(kernel)} only",)

    def as_dict(self) -> dict[str, Any]:
        return {
            "problem": self.problem.as_dict(),
            "key": self.problem.key(),
            "device": self.device.as_dict(),
            "plan": self.chosen.as_dict() if self.chosen else None,
            "error": self.error,
            "kernels": [
                {
                    "kernel": kernel.id,
                    "accepted": bool(decision),
                    "automatic": kernel.automatic(self.device),
                    "reasons": list(decision.reasons) if isinstance(decision, Rejected) else [],
                }
                for kernel, decision in self.decisions
            ],
        }

    def __str__(self) -> str:
        lines = [
            f"problem  {self.problem}",
            f"device   {self.device.name} ({self.device.arch}, {self.device.units} units)",
        ]
        if self.chosen:
            lines.append(f"plan     {self.chosen.kernel.id} [{self.chosen.config}]")
            lines.append(f"because  {self.chosen.detail}")
        else:
            lines.append(f"no plan  {self.error}")
        for kernel, decision in self.decisions:
            verdict = "; ".join(self.verdict(kernel, decision))
            lines.append(f"  {kernel.id}: {verdict}")
        return "\n".join(lines)


def explain(problem: AttentionProblem, device: DeviceProfile, backend: str = "") -> Explanation:
    """What every kernel of the op says about ``problem`` and which plan results; never raises NoKernelError."""
    decisions = tuple((kernel, kernel.check(problem, device)) for kernel in registry.kernels(problem.op))
    chosen, error = None, ""
    try:
        chosen = plan(problem, device, backend)
    except NoKernelError as failure:
        error = str(failure)
    return Explanation(problem, device, chosen, error, decisions)
