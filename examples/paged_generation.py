"""Answer several requests at once with SmolLM2-135M-Instruct, all out of one paged KV cache.

Run it with `python examples/paged_generation.py` where `make demo` has run once. The prompts are of very different
length, and the pool has too few pages for all of them: requests wait, join the batch when pages allow and leave when
they are finished. The system prompt that all begin with is held once. How requests are served stands in serving/,
which is short and meant to be read.

Every answer is compared with that to the request alone, and with the answer of transformers' own generate and cache.
The exit status is 1 if a single token differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.measure import load, step
from generate import fill, note_busy_machine
from serving.batching import Batch, Request, shared_prefix
from serving.llama import PagedLlama

from faops.nn import OutOfPagesError

TEXT = Path(__file__).resolve().parent / "text.txt"
MEGABYTE = 1e6
PROMPTS = (
    "What is gravity?",
    "Write a short poem about the sea.",
    "Name three colours.",
    "Who is Alice in the following text, and what does she wonder about? Answer briefly.\n\n{text}",
    "Explain in two sentences why the sky is blue.",
    "Translate into French: Good morning, how are you?",
    "What does this sentence mean, and who may have said it? The early bird catches the worm, but the second mouse "
    "gets the cheese, and the patient cat gets the mouse while everybody else is still asleep.",
    "Give me a recipe for pancakes, with the ingredients first and then the steps, one a line.",
)

Prompts = list[list[int]]


@dataclass
class Run:
    """One way of answering all requests: the new tokens of each, and what it took."""

    name: str
    answers: list[list[int]]
    seconds: float
    cache_bytes: int  # the most that keys and values took at one time
    pages: str = "-"
    remark: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=48, help="most new tokens for each prompt (default: 48)")
    options.add_argument("--pages", type=int, default=90, help="pages of 16 tokens in the cache (default: 90)")
    chosen = options.parse_args(arguments)
    if chosen.tokens < 1:
        options.error(f"--tokens {chosen.tokens}: expected at least 1")
    note_busy_machine()
    try:
        with step("loading SmolLM2-135M-Instruct"):
            model, tokenizer = load("sdpa")
        prompts = [encode(tokenizer, prompt) for prompt in PROMPTS]
        runs = []
        for answer in (with_transformers, one_by_one, all_at_once):
            with step(f"answering {len(prompts)} requests: {answer.__doc__}"):
                runs.append(answer(model, prompts, chosen.tokens, chosen.pages))
    except ImportError as error:
        print(f"{error}; `make demo` installs all that is needed")
        return 1
    except OutOfPagesError as error:
        print(f"--pages {chosen.pages} do not hold the longest request: {error}")
        return 1
    same = show_answers(tokenizer, prompts, runs)
    show_figures(runs)
    return 0 if same else 1


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a chat with one question."""
    chat = [{"role": "user", "content": prompt.format(text=TEXT.read_text(encoding="utf-8"))}]
    ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return ids


def with_transformers(model: Any, prompts: Prompts, tokens: int, pages: int) -> Run:
    """transformers, one by one"""
    import torch

    answers, largest, started = [], 0, time.perf_counter()
    options = {"max_new_tokens": tokens, "do_sample": False, "return_dict_in_generate": True}
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        answers.append(found.sequences[0, len(prompt) :].tolist())
        largest = max(largest, sum(layer.keys.nbytes + layer.values.nbytes for layer in found.past_key_values.layers))
    return Run("transformers, one by one", answers, time.perf_counter() - started, largest)


def one_by_one(model: Any, prompts: Prompts, tokens: int, pages: int) -> Run:
    """faops, one by one"""
    return serve("faops, one by one", model, prompts, tokens, pages, most=1)


def all_at_once(model: Any, prompts: Prompts, tokens: int, pages: int) -> Run:
    """faops, all at once"""
    shared = shared_prefix(prompts)
    run = serve("faops, all at once", model, prompts, tokens, pages, most=len(prompts), prefix=shared)
    run.remark += f" {len(shared)} tokens that all prompts begin with are held once."
    padded = len(prompts) * (max(map(len, prompts)) + tokens - 1) * bytes_a_token(model)
    run.remark += f" Keys and values of all as one padded batch would be {padded / MEGABYTE:.1f} MB."
    return run


def bytes_a_token(model: Any) -> int:
    """What the keys and values of one token take in all layers."""
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize


def serve(
    name: str, model: Any, prompts: Prompts, tokens: int, pages: int, most: int, prefix: Sequence[int] = ()
) -> Run:
    """Answer the prompts out of a paged cache, at most ``most`` at a time."""
    paged = PagedLlama(model, pages)
    requests = [Request(prompt, tokens) for prompt in prompts]
    started = time.perf_counter()
    batch = Batch(paged, model.generation_config.eos_token_id, most, prefix)
    batch.run(requests)
    seconds = time.perf_counter() - started
    remark = f"{batch.steps} passes of the model, {batch.interruptions} requests interrupted for want of pages."
    size = batch.peak_pages * paged.cache.page_size * bytes_a_token(model)
    return Run(name, [request.generated for request in requests], seconds, size, f"{batch.peak_pages}/{pages}", remark)


def show_answers(tokenizer: Any, prompts: Prompts, runs: Sequence[Run]) -> bool:
    """Print every answer and where those of another run differ from it; whether none does."""
    first, *others = runs
    all_same = True
    for number, (prompt, answer) in enumerate(zip(prompts, first.answers), 1):
        text = " ".join(tokenizer.decode(answer, skip_special_tokens=True).split())
        print(f"\n{number}. {len(prompt)} tokens of prompt, {len(answer)} new:\n{fill(text)}")
        for run in others:
            if run.answers[number - 1] != answer:
                all_same = False
                print(f"   *** DIFFERENT *** {run.name}: {tokenizer.decode(run.answers[number - 1])}")
    names = ", ".join(run.name for run in others)
    print(f"\n{names}: {'all tokens are those' if all_same else '*** some tokens are NOT those'} of {first.name}.")
    return all_same


def show_figures(runs: Sequence[Run]) -> None:
    rows = [("", "new tokens", "seconds", "tokens/s", "pages", "keys and values")]
    for run in runs:
        count = sum(map(len, run.answers))
        figures = (f"{count}", f"{run.seconds:.1f}", f"{count / run.seconds:.1f}")
        rows.append((run.name, *figures, run.pages, f"{run.cache_bytes / MEGABYTE:.1f} MB"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    print()
    for label, *values in rows:
        print("  ".join([label.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:]))]))
    for run in runs:
        if run.remark:
            print(fill(f"{run.name}: {run.remark}"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
