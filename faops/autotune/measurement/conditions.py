"""Under what conditions timings were taken, and which samples do not count because of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from faops.autotune import effort


@dataclass(frozen=True)
class State:
    """A GPU at one moment: its clocks in MHz, and why it runs slower than it could: heat, say; () if nothing does."""

    sm_mhz: int
    memory_mhz: int
    slowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Samples in seconds a call that were taken together, and the state of the device meanwhile; None if unknown."""

    samples: list[float]
    state: State | None = None


def undisturbed(batches: Sequence[Batch]) -> list[Batch]:
    """The batches that count: taken while nothing slowed the device, at a clock near the highest among them."""
    highest = max((batch.state.sm_mhz for batch in batches if batch.state is not None), default=0)
    lowest = (1 - effort.CLOCK_DROP) * highest
    return [batch for batch in batches if batch.state is None or _counts(batch.state, lowest)]


def _counts(state: State, lowest: float) -> bool:
    return not state.slowed and state.sm_mhz >= lowest


@dataclass(frozen=True)
class Conditions:
    """What is known of the device while some timings were taken.

    Clocks are in MHz, 0 where nobody told; ``rejected`` counts the samples that were left out; ``notes`` say what went
    wrong, and what could not be watched.
    """

    sm_mhz_lowest: int = 0
    sm_mhz_highest: int = 0
    memory_mhz: int = 0
    rejected: int = 0
    notes: tuple[str, ...] = ()

    def merged(self, other: Conditions) -> Conditions:
        """Of the timings of both."""
        lows = [low for low in (self.sm_mhz_lowest, other.sm_mhz_lowest) if low]
        return Conditions(
            sm_mhz_lowest=min(lows, default=0),
            sm_mhz_highest=max(self.sm_mhz_highest, other.sm_mhz_highest),
            memory_mhz=max(self.memory_mhz, other.memory_mhz),
            rejected=self.rejected + other.rejected,
            notes=tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form of what is known."""
        return {name: value for name, value in {**asdict(self), "notes": list(self.notes)}.items() if value}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Conditions:
        return Conditions(**{**data, "notes": tuple(data.get("notes", ()))})


def conditions_of(batches: Sequence[Batch], notes: Iterable[str] = ()) -> Conditions:
    """The conditions of one timing that took ``batches``."""
    counted = undisturbed(batches)
    states = [batch.state for batch in counted or batches if batch.state is not None]
    said = list(notes)
    if batches and not counted:
        reasons = sorted({reason for batch in batches if batch.state is not None for reason in batch.state.slowed})
        said.append(f"timed although the device was slowed all the time: {', '.join(reasons)}")
    return Conditions(
        sm_mhz_lowest=min((state.sm_mhz for state in states), default=0),
        sm_mhz_highest=max((state.sm_mhz for state in states), default=0),
        memory_mhz=max((state.memory_mhz for state in states), default=0),
        rejected=sum(len(batch.samples) for batch in batches if counted and batch not in counted),
        notes=tuple(dict.fromkeys(said)),
    )
