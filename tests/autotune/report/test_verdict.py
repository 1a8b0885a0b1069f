"""Why an entry won, in numbers and sentences, for entries of this and of older versions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from faops.autotune import effort
from faops.autotune.cache.entry import Entry, Timing
from faops.autotune.report.verdict import noise_of, timing_of, verdict, why
from faops.device import known
from faops.registry import Config

from ..support import make_entry

T4 = known("t4")


def timing(block: int, p50: float, mad: float = 0.001, kernel: str = "fake.forward", noisy: bool = False) -> Timing:
    return Timing(kernel, Config(block=block), 0.9 * p50, p50, 1.1 * p50, mad, 10, noisy)


def entry(*timings: Timing, winner: int = 0, **changes: Any) -> Entry:
    """An entry whose default is block 0 and whose winner is block ``winner``."""
    by_block = {item.config["block"]: item for item in timings}
    values = {
        "timings": timings,
        "config": Config(block=winner),
        "p50": by_block[winner].p50,
        "default_p50": by_block[0].p50,
        "speedup": by_block[0].p50 / by_block[winner].p50,
    }
    return make_entry(T4, **{**values, **changes})


WON = entry(timing(0, 1.0, 0.02), timing(3, 0.5, 0.03), timing(2, 0.55), winner=3)


def test_numbers_of_a_winner() -> None:
    found = verdict(WON)
    assert found.challenger == timing(3, 0.5, 0.03)
    assert found.default == timing(0, 1.0, 0.02)
    assert found.gain == 0.5
    assert found.noise == 0.03  # the larger of the two
    assert found.needed == effort.WIN_DEVIATIONS * 0.03  # more than WIN_MARGIN of the default
    assert not found.default_stayed
    assert not found.noisy


def test_margin_counts_where_there_is_little_noise() -> None:
    quiet = entry(timing(0, 1.0, 1e-6), timing(3, 0.5, 1e-6), winner=3)
    assert verdict(quiet).needed == effort.WIN_MARGIN


def test_recorded_decision_comes_before_what_is_computed() -> None:
    recorded = replace(WON, decision={"needed": 0.25, "noise": 0.125, "difference": 0.5})
    assert (verdict(recorded).needed, verdict(recorded).noise) == (0.25, 0.125)
    broken = replace(WON, decision={"needed": "much", "noise": float("nan")})
    assert (verdict(broken).needed, verdict(broken).noise) == (verdict(WON).needed, verdict(WON).noise)


def test_challenger_of_a_default_that_stays() -> None:
    """It is the recorded one; an older entry did not record it, and then it is the fastest other."""
    kept = entry(timing(0, 1.0), timing(1, 0.99), timing(2, 0.995))
    assert verdict(kept).challenger == timing(1, 0.99)
    recorded = replace(kept, decision={"kernel": "fake.forward", "config": {"block": 2}, "needed": 0.02})
    assert verdict(recorded).challenger == timing(2, 0.995)
    alone = replace(kept, decision={"kernel": "fake.forward", "config": {"block": 0}})
    assert verdict(alone).challenger is None


def test_challenger_is_told_apart_by_its_kernel() -> None:
    other = timing(0, 1.5, kernel="fake.other")  # the config of the default, of another kernel
    assert verdict(entry(timing(0, 1.0), other)).challenger == other
    recorded = {"kernel": "fake.other", "config": {"block": 0}}
    assert verdict(entry(timing(0, 1.0), other, decision=recorded)).challenger == other


def test_noisy_only_where_it_was_compared() -> None:
    assert not verdict(entry(timing(0, 1.0), timing(3, 0.5), timing(1, 0.7, noisy=True), winner=3)).noisy
    assert verdict(entry(timing(0, 1.0, noisy=True), timing(3, 0.5), winner=3)).noisy


def test_noise_is_a_part_of_the_median() -> None:
    assert noise_of(timing(0, 2.0, 0.5)) == 0.25
    assert timing_of(WON, "fake.forward", Config(block=9)) is None


def test_sentences_of_a_winner() -> None:
    first, needed, next_best, noise, *rest = why(WON)
    assert first == "fake.forward [block=3] takes 500 ms, the default fake.forward [block=0] 1 s: 50.0 % less (2.00x)."
    assert needed.startswith("To win it had to take at least 60 ms (")
    assert needed.endswith("less; it takes 500 ms less.")
    assert next_best == "The next best is fake.forward [block=2] with 550 ms, 10.0 % more."
    assert noise == "Noise (median absolute deviation): ±6.0 % of the winner, ±2.0 % of the default."
    assert rest[0] == "3 configs of 1 kernel ran, in 5 timings."
    assert rest[1] == "Left out: 1 failed."
    assert "agreed with those of a trusted kernel" in rest[2]
    assert rest[3] == f"Measured on 2026-11-21 by faops 0.1 on {T4.identity}."


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (entry(timing(0, 1.0)), ["fake.forward [block=0] stays with 1 s: nothing else ran."]),
        (entry(timing(0, 1.0), timing(1, 1.25)), ["stays with 1 s: it is the fastest", "1.25 s, 25.0 % more"]),
        (
            entry(timing(0, 1.0), timing(1, 0.99)),
            ["stays with 1 s. The fastest other", "990 ms, 1.0 % less", "at least 20 ms (", "it takes 10 ms less"],
        ),
        (entry(timing(0, 1.0), timing(1, 0.5)), ["1 s. The fastest other", "short timing of an early round"]),
        (entry(timing(0, 1.0), timing(1, 1.0)), ["it is the fastest", "1 s, the same"]),
    ],
)
def test_sentences_of_a_default_that_stays(made: Entry, words: list[str]) -> None:
    text = " ".join(why(made))
    for word in words:
        assert word in text, text


def test_next_best_is_not_told_twice() -> None:
    """Where only the default comes after the winner, it is named once."""
    assert "next best" not in " ".join(why(entry(timing(0, 1.0), timing(3, 0.5), winner=3)))


def test_what_newer_entries_know_is_told() -> None:
    dropped = (
        {"config": "fake.forward [block=7]", "reason": "signal 11", "kind": "crashed"},
        {"config": "fake.forward [block=6]", "reason": "wrong", "kind": "wrong"},
        {"config": "fake.forward [block=5]", "reason": "wrong", "kind": "wrong"},
    )
    text = " ".join(why(replace(WON, strategy="halving", pruned=12, driver="575.1", dropped=dropped)))
    assert "in 5 timings, by the strategy halving; 12 more could not win by the cost model." in text
    assert "Left out: 1 crashed, 2 wrong; what crashed or hung is not tried again" in text
    assert text.endswith("driver 575.1.")
    assert "not tried again" not in " ".join(why(replace(WON, dropped=dropped[1:])))


def test_noisy_timings_are_told() -> None:
    noisy = entry(timing(0, 1.0, noisy=True), timing(3, 0.5), winner=3)
    assert "take the result with care" in " ".join(why(noisy))
    assert "take the result with care" not in " ".join(why(WON))


def test_entry_without_its_own_timings() -> None:
    """An imported entry may hold fewer timings than it was made from."""
    bare = replace(WON, timings=())
    assert verdict(bare).gain == 0.5
    assert "Noise" not in " ".join(why(bare))


def test_conditions_are_told_where_they_are_known() -> None:
    clocks = {"sm_mhz_lowest": 1350, "sm_mhz_highest": 1410, "rejected": 12, "notes": ["timed without a CUDA graph: x"]}
    text = " ".join(why(replace(WON, clocks=clocks)))
    told = "clock 1350 to 1410 MHz; 12 samples did not count, as something slowed the device; timed without"
    assert f"Conditions: {told} a CUDA graph: x." in text
    assert "Conditions" not in " ".join(why(WON))
    assert "Conditions" not in " ".join(why(replace(WON, clocks={"notes": 3})))
