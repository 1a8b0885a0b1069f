"""What a run of `faops tune` has found: a table at its end, or a part of the JSON document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..output import percent, print_line, print_table, ratio, seconds
from .page_sizes import comparisons, print_comparisons

if TYPE_CHECKING:
    from faops.autotune.cache.entry import Entry
    from faops.autotune.tuner.events import Result


def unsaved(result: Result) -> bool:
    """Whether a problem was tuned and its winner could not be written."""
    return result.status == "tuned" and (result.entry is None or result.entry.path is None)


def as_dict(result: Result) -> dict[str, Any]:
    """JSON-able form of one problem's result."""
    from faops.autotune.report.verdict import verdict, why

    entry = result.entry
    document: dict[str, Any] = {
        "problem": result.problem.as_dict(),
        "key": result.problem.key(),
        "status": result.status,
        "measurements": result.measurements,
        "message": result.message,
        "stored": None if entry is None or entry.path is None else str(entry.path),
        "default": None,
        "winner": None,
        "speedup": None,
        "above_noise": None,
        "noise": None,
        "why": [],
    }
    if entry is None:
        return document
    return {
        **document,
        "default": {
            "kernel": entry.default_kernel, "config": dict(entry.default_config), "seconds": entry.default_p50,
        },
        "winner": {"kernel": entry.kernel, "config": dict(entry.config), "seconds": entry.p50},
        "speedup": entry.speedup,
        "above_noise": not entry.is_default,
        "noise": verdict(entry).noise,
        "why": why(entry),
    }  # fmt: skip


def print_results(results: list[Result], directory: str, elapsed: float) -> None:
    """Print the closing tables, what went wrong and where the winners lie; ``elapsed`` is the run's time in seconds."""
    print_line()
    print_table(("problem", "default", "winner", "speed-up", "noise", "verdict"), [_row(result) for result in results])
    print_line()
    print_comparisons(comparisons(results))
    for result in results:
        if result.status in ("failed", "skipped") or unsaved(result):
            print_line(f"{result.problem}: {result.message}")
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in ("tuned", "warm", "skipped", "failed")}
    if counts["warm"] == len(results):
        print_line(f"everything was tuned before and is reused: nothing was measured ({directory})")
        return
    measured = sum(result.measurements for result in results)
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    print_line(f"{listed}; {measured} measurements in {seconds(elapsed)}")
    if any(result.status == "tuned" and not unsaved(result) for result in results):
        print_line(f"the winners are stored in {directory}")


def _row(result: Result) -> tuple[str, ...]:
    entry = result.entry
    if entry is None:
        return str(result.problem), "-", "-", "-", "-", result.status
    default = f"{entry.default_kernel}\n{entry.default_config}\n{seconds(entry.default_p50)}"
    # The tuner replaces the default only by something faster beyond the noise, so another winner is above it.
    if entry.is_default:
        return str(result.problem), default, "the default", "-", _noise(entry), "nothing faster beyond the noise"
    winner = f"{entry.kernel}\n{entry.config}\n{seconds(entry.p50)}"
    return str(result.problem), default, winner, ratio(entry.speedup), _noise(entry), "above the noise"


def _noise(entry: Entry) -> str:
    """The larger noise of the two that were compared, as a part of the default's time."""
    from faops.autotune.report.verdict import verdict

    found = verdict(entry)
    return f"±{percent(found.noise / entry.default_p50)}" + ("\nnoisy timings" if found.noisy else "")
