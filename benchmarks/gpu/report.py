"""What the suite prints and keeps of its outcomes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gpu.outcome import Outcome, Status
from benchmarks.gpu.wrappers import ANSWER
from faops.device import DeviceProfile

STATUSES: tuple[Status, ...] = ("ok", "wrong", "lost", "hung", "skipped", "not run")
NAME_WIDTH = 70
SECTION_WIDTH = 18
SHOWN_BAD = 25
SPILLS = ("spill_store_bytes", "spill_bytes")  # of a raw CUDA kernel, and of the Triton kernels of a call
RATES = {"teraflops": "TFLOP/s", "gigabytes": "GB/s", "of_copy_bandwidth": "of a copy's"}


def heading(profile: DeviceProfile, result: dict[str, Any]) -> str:
    software = ", ".join(f"{name} {value}" for name, value in result["software"].items() if value)
    where = f"{profile.name} ({profile.arch}, {profile.units} multiprocessors)"
    if result["emulated"]:
        where += ", emulated"
    return f"{where}\ntorch {result['versions']['torch']}, {software or 'no CUDA'}\nseed {result['settings']['seed']}"


def show(outcome: Outcome) -> None:
    """One line for what is not simply ok, or has rates to show."""
    rates = {unit: outcome.data[name] for name, unit in RATES.items() if name in outcome.data}
    if outcome.status == "ok" and not rates:
        return
    text = f"{outcome.status:8} {outcome.name[:NAME_WIDTH]}"
    if outcome.status != "ok":
        text += f": {first_line(outcome)}"
    for unit, values in rates.items():
        text += f"  {unit} " + ", ".join(f"{name} {value}" for name, value in values.items())
    print(text, flush=True)


def first_line(outcome: Outcome) -> str:
    return outcome.detail.partition("\n")[0][:300]


def entry(outcome: Outcome) -> dict[str, Any]:
    """The outcome as it goes into the result file: recorded answers lie in files of their own."""
    kept = asdict(outcome)
    kept["data"] = {name: value for name, value in outcome.data.items() if name != ANSWER}
    return kept


def table(outcomes: Sequence[Outcome]) -> str:
    """A row a section, the ratios against each peer, then everything that was wrong."""
    sections = list(dict.fromkeys(outcome.section for outcome in outcomes))
    lines = ["section".ljust(SECTION_WIDTH) + "".join(f"{status:>9}" for status in STATUSES) + "  seconds"]
    for section in sections:
        mine = [outcome for outcome in outcomes if outcome.section == section]
        counts = "".join(f"{sum(outcome.status == status for outcome in mine):9}" for status in STATUSES)
        lines.append(f"{section:{SECTION_WIDTH}}{counts}{sum(outcome.seconds for outcome in mine):9.1f}")
    lines += [*_spills(outcomes), *_ratios(outcomes)]
    bad = [outcome for outcome in outcomes if outcome.bad]
    lines += [f"{outcome.status.upper()} {outcome.section}: {outcome.name}: {first_line(outcome)}"
              for outcome in bad[:SHOWN_BAD]]  # fmt: skip
    if len(bad) > SHOWN_BAD:
        lines.append(f"and {len(bad) - SHOWN_BAD} more, all in the result file")
    lines.append("all well" if not bad else f"{len(bad)} wrong")
    return "\n".join(lines)


def _spills(outcomes: Iterable[Outcome]) -> list[str]:
    spilling = [outcome for outcome in outcomes if any(outcome.data.get(name) for name in SPILLS)]
    return [f"{len(spilling)} kernels spill registers"] if spilling else []


def _ratios(outcomes: Iterable[Outcome]) -> list[str]:
    """How many times as fast each of ours is as each peer: median over the shapes, and the extremes."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for outcome in outcomes:
        kind = outcome.data.get("kind", "forward")
        for ours, ratios in outcome.data.get("ratios", {}).items():
            for peer, ratio in ratios.items():
                found.setdefault((kind, ours, peer), []).append(ratio["of_pairs"])
    return [
        f"{kind}: {ours} against {peer}: {statistics.median(values):.2f} times as fast "
        f"({min(values):.2f} to {max(values):.2f}, {len(values)} shapes)"
        for (kind, ours, peer), values in sorted(found.items())
    ]
