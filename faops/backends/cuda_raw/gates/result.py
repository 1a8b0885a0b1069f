"""What the gates find of a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GateResult:
    """What was found of one kernel. ``failures`` has a sentence for each gate it does not pass."""

    case: object  # whose text names the kernel
    figures: dict[str, int | float]
    failures: tuple[str, ...]


@dataclass
class Findings:
    """A result in the making."""

    figures: dict[str, int | float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, otherwise: str) -> None:
        """Note the failure ``otherwise`` unless the gate holds."""
        if not holds:
            self.failures.append(otherwise)

    def result(self, case: object) -> GateResult:
        return GateResult(case, self.figures, tuple(self.failures))
