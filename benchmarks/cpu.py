"""Attention on a CPU, forward and backward, against SDPA and compiled FlexAttention.

    python -m benchmarks.cpu                    everything
    python -m benchmarks.cpu --quick            a look in about a minute; the result goes to build/benchmarks
    python -m benchmarks.cpu --features window,alibi --tokens 2048 --dtypes float32

faops runs with its shipped defaults: tuned winners are not used (benchmarks.tuning measures what they bring).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import faops
from benchmarks import cases, memory, record
from benchmarks.cases import FEATURES, Case, Feature, make_inputs
from benchmarks.harness import Effort, Samples, interleave, speedup, summary, verdict
from benchmarks.peers import PEERS, WARM_TOKENS, candidate, measure_memory, no_backward, options_of, results
from faops.problem import AttentionProblem, Band

NAME = "cpu"

# Largest difference from faops' result that a peer may have, as a part of the largest value. Two right results in
# bfloat16 differ by some units in the last place (2^-8); SDPA's ALiBi bias is itself rounded to bfloat16.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

MEASURES = {"forward": ("forward",), "backward": ("backward",), "forward_backward": ("forward_grad", "backward")}

# What SDPA does without help faops must not do slower; what SDPA needs an O(tokens²) mask for, twice as fast.
BAR = 1.0
BAR_WITH_MASK = 2.0

LONG_TOKENS = 4096  # from here on a call takes so long that warming up with a short one does
SECONDS = 1.0  # of measuring a case, where two or three rounds take less
QUICK_SECONDS = 1.0
LIMIT_SECONDS = 15.0  # after which no further round of a case begins
MEMORY_HEAD_DIM = 64  # the only one whose memory is measured: it is in proportion to the head dim


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    os.environ["FAOPS_TUNING"] = "0"
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compilers beside the measurement
    chosen = cases.select(options.features, options.tokens, options.head_dims, options.dtypes)
    result = record.header(
        NAME, heads=cases.HEADS, window=cases.WINDOW, varlen_parts=list(cases.VARLEN_PARTS), seconds=options.seconds
    )
    result["peers"] = {peer.name: {"title": peer.title, "no_backward": no_backward(peer.name)}
                       for peer in PEERS.values() if peer.name in options.peers}  # fmt: skip
    result["cases"] = []
    start = time.perf_counter()
    print(f"{len(chosen)} cases, {torch.get_num_threads()} threads; ratios above 1: faops is faster\n{_heading()}")
    for case in chosen:
        found = measure_case(case, options)
        result["cases"].append(found)
        print(_line(found), flush=True)
        result["seconds"] = round(time.perf_counter() - start, 1)
        path = record.write(result, quick=not options.complete)  # each time: an interrupted run keeps what it has
    print(f"\n{path}")
    return 0


def measure_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one case: agreement of the results, times, ratios and memory."""
    with_gradients = {
        name: not options.forward_only and not no_backward(name) for name in options.peers if PEERS[name].runs(case)
    }
    errors = {name: difference(name, case, with_gradients[name]) for name in with_gradients if name != "faops"}
    agreeing = [name for name in with_gradients if errors.get(name, 0.0) <= TOLERANCE[case.dtype]]
    inputs = make_inputs(case)
    rounds = {name: candidate(name, case, inputs, with_gradients[name]) for name in agreeing}
    if "flex" in agreeing:
        candidate("flex", case, inputs, gradients=False)()  # a new length may compile once more
    long = case.tokens >= LONG_TOKENS
    effort = Effort(options.seconds, min_rounds=2 if long else 3, warmup_rounds=0 if long else 1, limit=LIMIT_SECONDS)
    samples = interleave(rounds, effort)
    wanted = agreeing if options.memory and case.head_dim == MEMORY_HEAD_DIM else []
    return {
        "case": case.as_dict(),
        "plan": plans(case),
        "difference": errors,
        "disagreeing": sorted(set(with_gradients) - set(agreeing)),
        "phases": {name: {phase: summary(values) for phase, values in one.items()} for name, one in samples.items()},
        "ratios": ratios(case.kind, samples),
        "memory": {name: peak_memory(name, case, with_gradients[name]) for name in wanted},
    }


def peak_memory(name: str, case: Case, gradients: bool) -> dict[str, Any]:
    """Bytes, or {"failed": why}."""
    try:
        return dict(memory.in_child(measure_memory, name, case, gradients, torch.get_num_threads()))
    except memory.ChildError as error:
        return {"failed": str(error)}


def difference(name: str, case: Case, gradients: bool) -> float:
    """Largest difference of a peer's result and gradients from those of faops, on a short case of the same kind."""
    short = case.with_tokens(WARM_TOKENS)
    pairs = zip(results("faops", short, gradients), results(name, short, gradients))
    return max(_relative(ours, theirs) for ours, theirs in pairs)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.float(), theirs.float()
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def measures(samples: Samples, with_build: bool) -> dict[str, list[float]]:
    """Seconds of each round of forward, backward, and forward with backward; building the mask counted or not."""
    found = {}
    for measure, phases in MEASURES.items():
        if all(phase in samples for phase in phases):
            builds = samples["build"] if with_build and measure != "backward" else [0.0] * len(samples[phases[0]])
            found[measure] = [sum(parts) for parts in zip(builds, *(samples[phase] for phase in phases))]
    return found


def ratios(kind: Feature, samples: Mapping[str, Samples]) -> dict[str, Any]:
    """For each peer and measure: how many times as fast faops is, the bar, and whether it is met.

    "sdpa_prebuilt" is SDPA without the time that building its mask takes; it has no bar of its own.
    """
    if "faops" not in samples:
        return {}
    ours = measures(samples["faops"], with_build=True)
    found: dict[str, Any] = {}
    for name, one in samples.items():
        if name == "faops":
            continue
        variants = {name: measures(one, with_build=True)}
        if name == "sdpa" and kind.needs_mask:
            variants["sdpa_prebuilt"] = measures(one, with_build=False)
        for variant, theirs in variants.items():
            found[variant] = {}
            for measure in theirs:
                ratio: dict[str, Any] = speedup(ours[measure], theirs[measure])
                bar = bar_of(variant, kind)
                if bar is not None:
                    ratio |= {"bar": bar, "verdict": verdict(ratio, bar)}
                found[variant][measure] = ratio
    return found


def bar_of(peer: str, kind: Feature) -> float | None:
    """How many times as fast as ``peer`` faops has to be; None where that is not asked."""
    if peer == "sdpa_prebuilt":
        return None
    return BAR_WITH_MASK if peer == "sdpa" and kind.needs_mask else BAR


def plans(case: Case) -> dict[str, Any]:
    """The kernel and config that faops chooses for each phase of a case."""
    kind, options = case.kind, options_of(case)
    longest = max(cases.lengths(case.tokens)) if kind.varlen else case.tokens
    forward = AttentionProblem(
        dtype=case.dtype,
        batch=len(cases.VARLEN_PARTS) if kind.varlen else 1,
        seqlen_q=longest,
        seqlen_k=longest,
        heads_q=cases.HEADS,
        heads_kv=kind.heads_kv,
        head_dim=case.head_dim,
        head_dim_v=case.head_dim,
        layout="varlen" if kind.varlen else "dense",
        band=Band.of(kind.causal, options.get("window", (-1, -1))).simplify(longest, longest),
        alibi=kind.alibi,
    )
    forward_grad = dataclasses.replace(forward, need_lse=True)
    backward = dataclasses.replace(forward_grad, op="backward")
    found = {}
    for phase, problem in {"forward": forward, "forward_grad": forward_grad, "backward": backward}.items():
        plan = faops.explain(problem).chosen
        if plan is not None:
            found[phase] = plan.as_dict()
    return found


# What is printed while measuring: measure, peer, heading.
COLUMNS = (
    ("forward", "sdpa", "fwd sdpa"),
    ("forward", "sdpa_prebuilt", "prebuilt"),
    ("forward", "sdpa_split", "split"),
    ("forward", "flex", "flex"),
    ("forward_backward", "sdpa", "fwd+bwd"),
    ("forward_backward", "sdpa_prebuilt", "prebuilt"),
    ("forward_backward", "sdpa_split", "split"),
    ("backward", "sdpa", "bwd sdpa"),
    ("backward", "sdpa_split", "split"),
)
MARKS = {"below": "!", "noise": "~", "met": " "}


def _heading() -> str:
    cells = "".join(f"{heading:>9}" for _, _, heading in COLUMNS)
    return f"{'! below the bar, ~ perhaps':28}{cells}   peak MiB: faops, sdpa, flex"


def _line(found: dict[str, Any]) -> str:
    cells = []
    for measure, peer, _ in COLUMNS:
        ratio = found["ratios"].get(peer, {}).get(measure)
        cells.append(f"{ratio['of_pairs']:8.2f}{MARKS[ratio.get('verdict', 'met')]}" if ratio else f"{'-':>8} ")
    peaks = [found["memory"].get(peer, {}).get("forward") for peer in ("faops", "sdpa", "flex")]
    memories = ", ".join("-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks)
    return f"{Case(**found['case'])!s:28}{''.join(cells)}   {memories}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="1024 tokens, head dim 64, float32 and little repetition")
    parser.add_argument("--features", type=_names(FEATURES), default=list(FEATURES), help="of " + ",".join(FEATURES))
    parser.add_argument("--tokens", type=_names(cases.TOKENS), help="of " + ",".join(map(str, cases.TOKENS)))
    parser.add_argument("--head-dims", type=_names(cases.HEAD_DIMS), help="of 64,128")
    parser.add_argument("--dtypes", type=_names(cases.DTYPE_NAMES), help="of " + ",".join(cases.DTYPE_NAMES))
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), help="of " + ",".join(PEERS))
    parser.add_argument("--seconds", type=float, help=f"of measuring a case at least, by default {SECONDS:g}")
    parser.add_argument("--forward-only", action="store_true", help="no gradients")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    options = parser.parse_args(arguments)
    whole = {"tokens": list(cases.TOKENS), "head_dims": list(cases.HEAD_DIMS), "dtypes": list(cases.DTYPE_NAMES),
             "seconds": SECONDS}  # fmt: skip
    quick = {"tokens": [cases.TOKENS[0]], "head_dims": [64], "dtypes": ["float32"], "seconds": QUICK_SECONDS}
    for name, value in (quick if options.quick else whole).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if "faops" not in options.peers:
        options.peers = ["faops", *options.peers]
    # Only the whole matrix is a result; a part of it is a look.
    everything = {**whole, "features": list(FEATURES), "peers": list(PEERS), "forward_only": False, "memory": True}
    options.complete = all(getattr(options, name) == value for name, value in everything.items())
    return options


def _names(known: Iterable[Any]) -> Callable[[str], list[Any]]:
    """Reads a comma-separated list of some of ``known``."""
    by_text = {str(value): value for value in known}

    def read(text: str) -> list[Any]:
        unknown = [part for part in text.split(",") if part not in by_text]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(by_text)}")
        return [by_text[part] for part in text.split(",")]

    return read


if __name__ == "__main__":
    sys.exit(main())
