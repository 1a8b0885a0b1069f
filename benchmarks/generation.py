"""Generating for several requests at once: a paged cache of faops against the caches of transformers, on a CPU.

    python -m benchmarks.generation
    python -m benchmarks.generation --quick      one short round of each; the result goes to build/benchmarks
    python -m benchmarks.generation --peers faops,dynamic --workloads mixed

The model is SmolLM2-135M-Instruct in float32, the same object for all: what differs is attention, the cache and how
requests are put together. faops runs examples/serving, with no tuned winners. Peers: DynamicCache and StaticCache with
`generate` on a batch padded on the left, which takes as many steps as the longest answer, and transformers' own paged
cache with continuous batching. Answers have a set length, and no token ends them earlier. A padded batch writes on
where an answer is complete; such tokens are not counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import memory, record
from benchmarks.harness import Effort, Phases, interleave, speedup, summary
from examples.demo.measure import load
from examples.serving.batching import Batch, Request
from examples.serving.llama import PagedLlama

NAME = "generation"
PAGE_SIZE = 16
NO_STOP = -1  # no token has this number
MIB = 2**20

Tokens = list[list[int]]


@dataclass(frozen=True)
class Workload:
    """Requests: the tokens of each prompt, and how many new tokens each asks for."""

    name: str
    prompts: tuple[int, ...]
    answers: tuple[int, ...]

    def draw(self, text: Sequence[int]) -> Tokens:
        """The prompts: pieces of ``text`` that begin at different places."""
        starts = range(0, len(self.prompts) * 7, 7)
        return [list(text[start : start + length]) for start, length in zip(starts, self.prompts)]


WORKLOADS = (
    Workload("alike", prompts=(128,) * 8, answers=(48,) * 8),
    Workload("mixed", prompts=(768, 16, 96, 384, 32, 192, 48, 24), answers=(32, 48, 8, 64, 40, 16, 64, 24)),
)


@dataclass
class Outcome:
    """What one way of generating gave: the new tokens of each request, its seconds, and the bytes of its cache."""

    answers: Tokens
    seconds: float
    first_seconds: float | None  # until all prompts were read, where that can be told
    cache_bytes: int  # the most that held keys and values at one time


def paged(model: Any, prompts: Tokens, counts: Sequence[int]) -> Outcome:
    """examples/serving over a cache with enough pages."""
    pages = enough_pages(prompts, counts)
    requests = [Request(prompt, count) for prompt, count in zip(prompts, counts)]
    started = time.perf_counter()
    server = PagedLlama(model, pages, PAGE_SIZE)
    batch = Batch(server, stop=NO_STOP)
    batch.waiting.extend(requests)
    batch.step()
    first = time.perf_counter()
    batch.run(())
    ended = time.perf_counter()
    size = server.cache.nbytes // pages * batch.peak_pages
    return Outcome([request.generated for request in requests], ended - started, first - started, size)


def padded(model: Any, prompts: Tokens, counts: Sequence[int], cache: str = "dynamic") -> Outcome:
    """`generate` of transformers on one batch, padded on the left, with the named cache."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    visible = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    times: list[float] = []

    def note_time(ids: torch.Tensor, scores: torch.Tensor, **others: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool)

    named = {} if cache == "dynamic" else {"cache_implementation": cache, "disable_compile": True}
    started = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=visible, max_new_tokens=max(counts), do_sample=False, eos_token_id=NO_STOP,
            pad_token_id=0, stopping_criteria=[note_time], return_dict_in_generate=True, **named,
        )  # fmt: skip
    ended = time.perf_counter()
    new = found.sequences[:, longest:].tolist()
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in found.past_key_values.layers)
    return Outcome([row[:count] for row, count in zip(new, counts)], ended - started, times[0] - started, size)


def continuous(model: Any, prompts: Tokens, counts: Sequence[int]) -> Outcome:
    """Continuous batching of transformers over its own paged cache, with enough pages; setting up is not timed."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    pages = enough_pages(prompts, counts)
    setting = ContinuousBatchingConfig(
        page_size=PAGE_SIZE, num_blocks=pages, max_batch_tokens=sum(map(len, prompts)), allow_block_sharing=False
    )
    how = GenerationConfig(do_sample=False, max_new_tokens=max(counts), eos_token_id=NO_STOP, pad_token_id=0)
    with model.continuous_batching_context_manager(how, continuous_batching_config=setting) as manager:
        started = time.perf_counter()
        names = [
            manager.add_request(prompt, max_new_tokens=count, eos_token_id=NO_STOP)
            for prompt, count in zip(prompts, counts)
        ]
        results: dict[str, list[int]] = {}
        while len(results) < len(names):
            result = manager.get_result(timeout=60)
            if result is None or result.error:
                raise RuntimeError(f"transformers' continuous batching stopped: {result and result.error}")
            if result.is_finished():
                results[result.request_id] = list(result.generated_tokens)
        seconds = time.perf_counter() - started
        size = manager.batch_processor.cache.cache_tensor.nbytes
    return Outcome([results[name] for name in names], seconds, None, size)


def enough_pages(prompts: Tokens, counts: Sequence[int]) -> int:
    """Pages that hold every prompt with its answer, and one more for each, so that none has to wait."""
    return sum(-(-(len(prompt) + count) // PAGE_SIZE) + 1 for prompt, count in zip(prompts, counts))


@dataclass(frozen=True)
class Contender:
    title: str
    generate: Callable[..., Outcome]


CONTENDERS = {
    "faops": Contender("faops, paged", paged),
    "dynamic": Contender("transformers, DynamicCache", padded),
    "static": Contender("transformers, StaticCache", partial(padded, cache="static")),
    "continuous": Contender("transformers, continuous batching", continuous),
}


def measure(
    workload: Workload, model: Any, text: Sequence[int], names: Sequence[str], effort: Effort
) -> dict[str, Any]:
    """Seconds, cache bytes and agreement of every contender for a workload, in interleaved rounds."""
    prompts = workload.draw(text)
    last: dict[str, Outcome] = {}

    def run(name: str) -> Phases:
        last[name] = found = CONTENDERS[name].generate(model, prompts, workload.answers)
        phases = {"whole": found.seconds}
        return phases if found.first_seconds is None else {**phases, "first": found.first_seconds}

    samples = interleave({name: partial(run, name) for name in names}, effort)
    new = sum(workload.answers)
    runs = {
        name: {
            "seconds": {phase: summary(values) for phase, values in one.items()},
            "tokens_per_second": round(new / summary(one["whole"])["median"], 2),
            "cache_bytes": last[name].cache_bytes,
            "same_tokens": sum(a == b for a, b in zip(flat(last[name].answers), flat(last[names[0]].answers))),
        }
        for name, one in samples.items()
    }
    ours = samples[names[0]]["whole"]
    return {
        "case": {"name": workload.name, "prompts": workload.prompts, "answers": workload.answers, "new_tokens": new},
        "runs": runs,
        "speedup": {name: speedup(ours, samples[name]["whole"]) for name in names[1:]},
    }


def flat(answers: Tokens) -> list[int]:
    return [token for answer in answers for token in answer]


def peak_bytes(name: str, workload: Workload) -> int:
    """Bytes by which resident memory rises while ``workload`` is served, in this process, which loads the model."""
    model, text = prepare()
    small = replace(workload, prompts=(8, 4), answers=(2, 2))
    CONTENDERS[name].generate(model, small.draw(text), small.answers)  # what is made once is there before
    prompts = workload.draw(text)
    return memory.peak_of(lambda: CONTENDERS[name].generate(model, prompts, workload.answers))


def prepare() -> tuple[Any, list[int]]:
    """The model, and the tokens of examples/text.txt."""
    model, tokenizer = load("sdpa")
    text = (record.ROOT / "examples" / "text.txt").read_text(encoding="utf-8")
    return model, tokenizer(text)["input_ids"]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    os.environ["FAOPS_TUNING"] = "0"
    model, text = prepare()
    chosen = [workload for workload in WORKLOADS if workload.name in options.workloads]
    effort = Effort(30.0, min_rounds=3, max_rounds=9)
    if options.quick:
        chosen = [replace(workload, answers=(4,) * len(workload.answers)) for workload in chosen]
        effort = Effort(0.0, min_rounds=1, warmup_rounds=0)
    result = record.header(NAME, model="SmolLM2-135M-Instruct", dtype="float32", page_size=PAGE_SIZE)
    result["contenders"] = {name: CONTENDERS[name].title for name in options.peers}
    result["cases"] = []
    for workload in chosen:
        found = measure(workload, model, text, options.peers, effort)
        for name in options.peers if sys.platform == "linux" else ():
            found["runs"][name]["peak_bytes"] = memory.in_child(peak_bytes, name, workload)
        result["cases"].append(found)
        show(found)
    print(record.write(result, options.quick))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one short round; the result goes to build/benchmarks")
    parser.add_argument("--peers", default=",".join(CONTENDERS), help="contenders, ours first (default: %(default)s)")
    parser.add_argument("--workloads", default=",".join(one.name for one in WORKLOADS), help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.peers, options.workloads = options.peers.split(","), options.workloads.split(",")
    for name, given, known in (
        ("peers", options.peers, list(CONTENDERS)),
        ("workloads", options.workloads, [one.name for one in WORKLOADS]),
    ):
        if unknown := [one for one in given if one not in known]:
            parser.error(f"--{name} {','.join(given)}: unknown {','.join(unknown)}, expected some of {','.join(known)}")
    return options


def show(found: dict[str, Any]) -> None:
    case = found["case"]
    print(f"\n{case['name']}: {len(case['prompts'])} requests, {sum(case['prompts'])} + {case['new_tokens']} tokens")
    for name, run in found["runs"].items():
        first = run["seconds"].get("first")
        print(
            f"  {CONTENDERS[name].title:36}{run['tokens_per_second']:8.1f} tokens/s"
            f"{'-' if first is None else format(first['median'], '.2f'):>8} s for the prompts"
            f"{run['cache_bytes'] / MIB:8.1f} MiB of cache{run.get('peak_bytes', 0) / MIB:8.1f} MiB at most"
            f"  {run['same_tokens']}/{case['new_tokens']} tokens the same"
        )


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of a table with a line for every contender and workload."""
    heading = [
        "", "new tokens a second", "times as fast is faops", "seconds for the prompts", "keys and values",
        "peak memory", "same tokens",
    ]  # fmt: skip
    rows = []
    for found in result["cases"]:
        for name, run in found["runs"].items():
            ratio, first, peak = found["speedup"].get(name), run["seconds"].get("first"), run.get("peak_bytes")
            cells = [
                f"{run['tokens_per_second']:.1f}",
                "–" if ratio is None else f"{ratio['of_pairs']:.2f}",
                "–" if first is None else f"{first['median']:.1f}",
                f"{run['cache_bytes'] / MIB:.0f} MiB",
                "–" if peak is None else f"{peak / MIB:.0f} MiB",
                f"{run['same_tokens']} of {found['case']['new_tokens']}",
            ]
            rows.append([f"{found['case']['name']}: {result['contenders'][name]}", *cells])
    return heading, rows


if __name__ == "__main__":
    sys.exit(main())
