"""Regret of the search strategies: how much slower their winner is than the best config, by what they measured.

    python -m benchmarks.regret              all recorded sweeps, and made-up ones of GPUs; some minutes
    python -m benchmarks.regret --quick      few repetitions; the result goes to build/benchmarks

Every strategy searches every sweep again and again, with other draws and other noise, allowed to time 4, 8, 16, ...
configs. Measured sweeps are those that `python -m benchmarks.sweeps` recorded. For GPUs, sweeps are made up from the
cost model, which errs by a fifth on every config: they show how a search deals with a model that errs, and say nothing
about those devices. The two kinds are never mixed. Writes regret.json and regret.png.

Where timings are noisy no search ends at the fastest config of the sweep, as a default is left only for something
faster beyond the noise. So there are two figures: regret, against the fastest config, and excess, against what an
exhaustive search of the same sweep chose; the goal is about the latter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.sweeps import folder_of
from faops.autotune.measurement.clocks import quantile
from faops.autotune.recording import sweep
from faops.autotune.recording.replay import Replayed, replay
from faops.autotune.recording.sweep import MODEL_ERROR, NOISE, Sweep, modelled
from faops.autotune.search.exhaustive import Exhaustive
from faops.autotune.search.halving import Halving
from faops.autotune.search.random_draws import RandomDraws
from faops.autotune.search.strategy import Strategy
from faops.autotune.workloads import from_shapes
from faops.device import detect, known

NAME = "regret"
SIZES = (4, 8, 12, 16, 24, 32, 48, 64)  # configs that a search may time
SEEDS = 20
GOAL = 0.02
SHARE = 0.95  # of the searches, for the worse of the two figures
DEVICES = ("t4", "a100", "h200")
SHAPES = (
    "sq=4096,h=32,hk=8,d=128,dtype=float16,causal=1",
    "op=backward,sq=4096,h=32,hk=8,d=128,dtype=float16,causal=1,need_lse=1",
    "op=decode,b=8,sq=1,sk=8192,h=32,hk=8,d=128,dtype=float16",
)

HIGHEST = 150  # per cent, of the figure's scale

Make = Callable[[int, int], Strategy]
STRATEGIES: Mapping[str, Make] = {
    "halving": lambda size, seed: Halving(configs=size),
    "random": lambda size, seed: RandomDraws(configs=size, seed=seed),
}
COLOURS = {"halving": "#0072B2", "random": "#D55E00", "exhaustive": "#555555"}  # told apart by the colour-blind
TITLES = {"measured": "measured sweeps", "modelled": "made-up sweeps (cost model with errors)"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regret", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions; the result goes to build/benchmarks")
    parser.add_argument("--seeds", type=int, help=f"repetitions of every search (default: {SEEDS})")
    options = parser.parse_args(arguments)
    seeds = options.seeds or (2 if options.quick else SEEDS)
    sizes = SIZES[:4] if options.quick else SIZES
    result = record.header(
        NAME, seeds=seeds, sizes=list(sizes), model_error=MODEL_ERROR, noise=NOISE, goal=GOAL, share=SHARE
    )
    recorded = list(measured_sweeps(options.quick))
    if not recorded:
        print("there are no recorded sweeps: `python -m benchmarks.sweeps` records some", file=sys.stderr)
    made_up = DEVICES[-1:] if options.quick else DEVICES
    groups: dict[str, Callable[[int], Sequence[Sweep]]] = {
        "measured": lambda seed: recorded,
        "modelled": lambda seed: [found for device in made_up for found in modelled_sweeps(device, seed)],
    }
    result["groups"] = {}
    for name, sweeps in groups.items():
        result["groups"][name] = curves(sweeps, sizes, seeds)
        print(f"\n{TITLES[name]}\n{table(result['groups'][name])}", flush=True)
    path = record.write(result, options.quick)
    plot(result["groups"], path.with_suffix(".png"))
    print(f"\n{path}\n{path.with_suffix('.png')}")
    return 0


def measured_sweeps(quick: bool = False) -> Iterator[Sweep]:
    """The sweeps that were recorded on this device."""
    for path in sorted(folder_of(detect("cpu"), quick).glob("*.jsonl")):
        yield sweep.read(path)


def modelled_sweeps(device: str, seed: int) -> Iterator[Sweep]:
    """Made-up sweeps of a device, for each seed others."""
    for problem in from_shapes(SHAPES).problems:
        yield modelled(problem, known(device), seed)


def curves(sweeps: Callable[[int], Sequence[Sweep]], sizes: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """A point a strategy and size, over all sweeps and seeds; exhaustive search is one point."""
    found: dict[tuple[str, int], list[tuple[Replayed, Replayed]]] = {}
    for seed in range(seeds):
        for one in sweeps(seed):
            everything = replay(one, Exhaustive(), seed)
            found.setdefault(("exhaustive", 0), []).append((everything, everything))
            for name, make in STRATEGIES.items():
                for size in sizes:
                    found.setdefault((name, size), []).append((replay(one, make(size, seed), seed), everything))
    return [point(name, size, pairs) for (name, size), pairs in found.items()]


def point(name: str, size: int, pairs: Sequence[tuple[Replayed, Replayed]]) -> dict[str, Any]:
    """What the searches of one strategy and size came to, each beside the exhaustive one of the same sweep.

    ``allowed`` is 0 where there was no limit.
    """
    searches = [search for search, _ in pairs]
    regrets = [search.regret for search in searches]
    excesses = [(1 + search.regret) / (1 + everything.regret) - 1 for search, everything in pairs]
    return {
        "strategy": name,
        "allowed": size,
        "searches": len(searches),
        "configs": statistics.mean(search.configs for search in searches),
        "timings": statistics.mean(search.timings for search in searches),
        "seconds": statistics.mean(search.seconds for search in searches),
        "regret_mean": statistics.mean(regrets),
        "regret_high": quantile(regrets, SHARE),
        "excess_mean": statistics.mean(excesses),
        "within_goal": sum(excess <= GOAL for excess in excesses) / len(excesses),
        "regrets": [round(regret, 5) for regret in regrets],
        "excesses": [round(excess, 5) for excess in excesses],
    }


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """Lines for people: every point, and from which number of configs on the goal is reached in the mean.

    "in goal" is the share of the searches whose excess is within it.
    """
    if not points:
        return "  none"
    heads = ("configs", "timings", "seconds", "mean regret", "95 % below", "mean excess", "in goal")
    lines = [f"  {'strategy':<11}" + "".join(f"{head:>12}" for head in heads)]
    for one in sorted(points, key=lambda one: (one["strategy"], one["configs"])):
        cells = (
            f"{one['configs']:.0f}", f"{one['timings']:.0f}", f"{one['seconds']:.2f}", f"{one['regret_mean']:.1%}",
            f"{one['regret_high']:.1%}", f"{one['excess_mean']:.1%}", f"{one['within_goal']:.0%}",
        )  # fmt: skip
        lines.append(f"  {one['strategy']:<11}" + "".join(f"{cell:>12}" for cell in cells))
    for name in dict.fromkeys(str(one["strategy"]) for one in points):
        lines.append(reached(name, [one for one in points if one["strategy"] == name]))
    return "\n".join(lines)


def reached(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    """The cheapest point from which on the mean excess is within the goal."""
    good: Mapping[str, Any] | None = None
    for one in sorted(points, key=lambda one: -one["configs"]):
        if one["excess_mean"] > GOAL:
            break
        good = one
    if good is None:
        return f"  {name}: never within {GOAL:.0%} of the exhaustive search in the mean"
    cost = f"{good['configs']:.0f} configs on, {good['timings']:.0f} timings, {good['seconds']:.2f} s"
    return f"  {name}: within {GOAL:.0%} of the exhaustive search in the mean from {cost}"


def plot(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw mean regret, and the band up to what 95 % of the searches stay below, against the configs timed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = {name: points for name, points in groups.items() if points}
    figure = Figure(figsize=(5.2 * max(1, len(drawn)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (group, points) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(1, len(drawn), place)
        for name in STRATEGIES:
            line = sorted((one for one in points if one["strategy"] == name), key=lambda one: one["configs"])
            x, mean, high = ([one[of] for one in line] for of in ("configs", "regret_mean", "regret_high"))
            axes.plot(x, percent(mean), color=COLOURS[name], marker="o", label=name)
            axes.fill_between(x, percent(mean), percent(high), color=COLOURS[name], alpha=0.15, lw=0)
        for one in points:
            if one["strategy"] == "exhaustive":
                at = ([one["configs"]], percent([one["regret_mean"]]))
                axes.plot(*at, color=COLOURS["exhaustive"], marker="s", ls="", label="exhaustive")
        axes.axhline(100 * GOAL, color="black", lw=0.8, ls=":", label=f"{GOAL:.0%}")
        axes.set_yscale("symlog", linthresh=1)  # so that nothing at all can be drawn too
        axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], [f"{tick:g}" for tick in (0, 1, 2, 5, 10, 20, 50, 100)])
        axes.set_ylim(0, HIGHEST)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("configs timed")
        axes.set_ylabel("slower than the best config (%)")
        axes.set_title(TITLES[group], fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def percent(parts: Sequence[float]) -> list[float]:
    return [100 * part for part in parts]


if __name__ == "__main__":
    sys.exit(main())
