"""Why an entry's winner won, or why the default stayed: in numbers and in sentences.

Everything is computed from what the entry holds. Entries of older versions hold less, and then less is said.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from faops.autotune import effort
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.search.trial import QUARANTINED
from faops.quantities import counted, percent, ratio, seconds
from faops.registry import Config


@dataclass(frozen=True)
class Verdict:
    """What was compared. Times in seconds a call.

    ``challenger`` is the winner, or, where the default stayed, the fastest of the others (None: no other ran).
    ``gain`` is how much less time it takes than the default (negative: more), ``needed`` how much less it must take to
    win; ``noise`` is the larger median absolute deviation of the two.
    """

    default: Timing | None
    challenger: Timing | None
    gain: float
    needed: float
    noise: float
    default_stayed: bool

    @property
    def noisy(self) -> bool:
        """Whether a timing that was compared is marked as noisy."""
        return any(timing.noisy for timing in (self.default, self.challenger) if timing is not None)


def verdict(entry: Entry) -> Verdict:
    """What was compared when ``entry`` was made."""
    default = timing_of(entry, entry.default_kernel, entry.default_config)
    challenger = _challenger(entry)
    time = entry.p50 if challenger is None else challenger.p50
    noise = max((timing.mad for timing in (default, challenger) if timing is not None), default=0.0)
    needed = max(effort.WIN_MARGIN * entry.default_p50, effort.WIN_DEVIATIONS * noise)
    return Verdict(
        default=default,
        challenger=challenger,
        gain=entry.default_p50 - time,
        needed=_recorded(entry, "needed", needed),
        noise=_recorded(entry, "noise", noise),
        default_stayed=entry.is_default,
    )


def _challenger(entry: Entry) -> Timing | None:
    """The timing that was held against the default's in the end."""
    if not entry.is_default:
        return timing_of(entry, entry.kernel, entry.config)
    kernel, config = entry.decision.get("kernel"), entry.decision.get("config")
    if not isinstance(config, dict):  # an older faops did not record it
        return _fastest_but(entry, entry.default_kernel, entry.default_config)
    compared = next((t for t in entry.timings if t.kernel == kernel and dict(t.config) == config), None)
    return None if compared == timing_of(entry, entry.default_kernel, entry.default_config) else compared


def _recorded(entry: Entry, name: str, computed: float) -> float:
    """A number of the recorded decision, or the computed one where it was not recorded."""
    value = entry.decision.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else computed


def timing_of(entry: Entry, kernel: str, config: Config) -> Timing | None:
    """The entry's timing of one config; None where it has none."""
    return next((timing for timing in entry.timings if (timing.kernel, timing.config) == (kernel, config)), None)


def noise_of(timing: Timing) -> float:
    """Median absolute deviation as a part of the median."""
    return timing.mad / timing.p50


def why(entry: Entry) -> list[str]:
    """Sentences that tell why the entry's winner won, the most important first."""
    found = verdict(entry)
    sentences = _default_stays(entry, found) if found.default_stayed else _winner_wins(entry, found)
    return [
        *sentences, *_noise(found), *_conditions(entry), _effort(entry), *_of_device(entry), *_left_out(entry),
        _checked(), _provenance(entry),
    ]  # fmt: skip


def _winner_wins(entry: Entry, found: Verdict) -> list[str]:
    winner, default = _named(entry.kernel, entry.config), _named(entry.default_kernel, entry.default_config)
    sentences = [
        f"{winner} takes {seconds(entry.p50)}, the default {default} {seconds(entry.default_p50)}: "
        f"{percent(found.gain / entry.default_p50)} less ({ratio(entry.speedup)}).",
        f"To win it had to take at least {_needed(found)} less; it takes {seconds(found.gain)} less.",
    ]
    next_best = _fastest_but(entry, entry.kernel, entry.config)
    if next_best is not None and next_best != found.default:
        name = _named(next_best.kernel, next_best.config)
        sentences.append(
            f"The next best is {name} with {seconds(next_best.p50)}, {_against(next_best.p50, entry.p50)}."
        )
    return sentences


def _default_stays(entry: Entry, found: Verdict) -> list[str]:
    default = _named(entry.default_kernel, entry.default_config)
    stays = f"The default {default} stays with {seconds(entry.default_p50)}"
    other = found.challenger
    if other is None:
        return [f"{stays}: nothing else ran."]
    name, against = _named(other.kernel, other.config), _against(other.p50, entry.default_p50)
    if found.gain <= 0:
        return [f"{stays}: it is the fastest. The next best is {name} with {seconds(other.p50)}, {against}."]
    sentences = [f"{stays}. The fastest other is {name} with {seconds(other.p50)}, {against}."]
    if found.gain <= found.needed:
        return [
            *sentences,
            f"To win it had to take at least {_needed(found)} less; it takes {seconds(found.gain)} less.",
        ]
    return [
        *sentences,
        "That was a short timing of an early round: timed for longer, others were faster, and none won.",
    ]


def _named(kernel: str, config: Config) -> str:
    return f"{kernel} [{config}]"


def _needed(found: Verdict) -> str:
    rule = f"the larger of {percent(effort.WIN_MARGIN)} of the default and {effort.WIN_DEVIATIONS:g} times the noise"
    return f"{seconds(found.needed)} ({rule})"


def _against(time: float, reference: float) -> str:
    """How ``time`` compares with a reference time."""
    difference = time / reference - 1
    return "the same" if difference == 0 else f"{percent(abs(difference))} {'more' if difference > 0 else 'less'}"


def _fastest_but(entry: Entry, kernel: str, config: Config) -> Timing | None:
    """The fastest timing of any other config."""
    others = [timing for timing in entry.timings if (timing.kernel, timing.config) != (kernel, config)]
    return min(others, key=lambda timing: timing.p50, default=None)


def _noise(found: Verdict) -> list[str]:
    if found.default is None or found.challenger is None:
        return []
    who = "the other" if found.default_stayed else "the winner"
    values = f"±{percent(noise_of(found.challenger))} of {who}, ±{percent(noise_of(found.default))} of the default"
    doubt = "; their samples spread widely, so take the result with care" if found.noisy else ""
    return [f"Noise (median absolute deviation): {values}{doubt}."]


def _conditions(entry: Entry) -> list[str]:
    """What is known of the device while it was measured, see
    :class:`~faops.autotune.measurement.conditions.Conditions`."""
    lowest, highest, rejected = (entry.clocks.get(name) for name in ("sm_mhz_lowest", "sm_mhz_highest", "rejected"))
    notes = entry.clocks.get("notes")
    found = [f"clock {lowest} to {highest} MHz"] if lowest and highest else []
    found += [f"{rejected} samples did not count, as something slowed the device"] if rejected else []
    found += map(str, notes) if isinstance(notes, list) else []
    return [f"Conditions: {'; '.join(found)}."] if found else []


def _effort(entry: Entry) -> str:
    configs = counted(len(entry.timings), "config", "configs")
    kernels = counted(len({timing.kernel for timing in entry.timings}), "kernel", "kernels")
    timings = counted(entry.measurements, "timing", "timings")
    strategy = f", by the strategy {entry.strategy}" if entry.strategy else ""
    pruned = f"; {entry.pruned} more could not win by the cost model" if entry.pruned else ""
    return f"{configs} of {kernels} ran, in {timings}{strategy}{pruned}."


# What a reader must not take a winner on a vendor's devices for.
OF_VENDOR = {
    "ascend": "CANN chooses the tiles inside its fused operators, and no argument sets them: what was compared of "
    "those is which one runs, in which layout, with which form of the mask and at which inner precision.",
}


def _of_device(entry: Entry) -> list[str]:
    words = OF_VENDOR.get(entry.device.partition("_")[0])
    return [words] if words else []


def _left_out(entry: Entry) -> list[str]:
    """How many configs failed, by what became of them."""
    kinds = Counter(item.get("kind", "failed") for item in entry.dropped)
    quarantined = sum(count for kind, count in kinds.items() if kind in QUARANTINED)
    if not kinds:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    again = "; what crashed or hung is not tried again while its kernel's code is the same" if quarantined else ""
    return [f"Left out: {listed}{again}."]


def _checked() -> str:
    return "Its results agreed with those of a trusted kernel in a wider dtype before it could win."


def _provenance(entry: Entry) -> str:
    driver = f", driver {entry.driver}" if entry.driver else ""
    return f"Measured on {entry.date} by faops {entry.faops_version} on {entry.device}{driver}."
