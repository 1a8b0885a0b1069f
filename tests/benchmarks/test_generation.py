"""Generation: contenders are asked for the same tokens, cache bytes are exact, the table holds what was measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import generation, record
from benchmarks.generation import CONTENDERS, PAGE_SIZE, Outcome, Workload, enough_pages, measure
from benchmarks.harness import Effort

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: transformers)")

VOCABULARY, LAYERS, HEADS_KV, HEAD_DIM = 83, 2, 2, 8
TOKEN_BYTES = 2 * LAYERS * HEADS_KV * HEAD_DIM * 8  # keys and values in float64
WORKLOAD = Workload("small", prompts=(21, 3, 9), answers=(4, 7, 1))


@pytest.fixture
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=40, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=HEADS_KV, head_dim=HEAD_DIM, initializer_range=0.4, pad_token_id=None, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).double().eval()
    made.set_attn_implementation("sdpa")
    return made


@pytest.fixture
def text() -> list[int]:
    return [random.randrange(VOCABULARY) for _ in range(60)]


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_prompts_have_the_asked_lengths(text: list[int]) -> None:
    prompts = WORKLOAD.draw(text)
    assert [len(prompt) for prompt in prompts] == [21, 3, 9]
    assert prompts[1] == text[7:10]
    for workload in generation.WORKLOADS:
        assert len(workload.prompts) == len(workload.answers)
        assert all(map(len, workload.draw(range(1000))))


@pytest.mark.parametrize("name", ["faops", "dynamic", "static"])
def test_contenders_answer_as_the_model(name: str, model: Any, text: list[int]) -> None:
    prompts = WORKLOAD.draw(text)
    found = CONTENDERS[name].generate(model, prompts, WORKLOAD.answers)
    assert found.answers == [greedy(model, prompt, count) for prompt, count in zip(prompts, WORKLOAD.answers)]
    assert found.first_seconds is not None and 0 < found.first_seconds < found.seconds
    tokens = {"faops": 4 * PAGE_SIZE, "dynamic": 3 * (21 + 7 - 1), "static": 3 * (21 + 7 - 1)}
    assert found.cache_bytes == tokens[name] * TOKEN_BYTES


@pytest.mark.full
def test_continuous_batching_answers_as_the_model(model: Any, text: list[int]) -> None:
    prompts = WORKLOAD.draw(text)
    found = CONTENDERS["continuous"].generate(model, prompts, WORKLOAD.answers)
    assert found.answers == [greedy(model, prompt, count) for prompt, count in zip(prompts, WORKLOAD.answers)]
    assert found.cache_bytes >= enough_pages(prompts, WORKLOAD.answers) * PAGE_SIZE * TOKEN_BYTES


def made_up(seconds: float, answers: list[list[int]], *ignored: Any) -> Outcome:
    return Outcome(answers, seconds, seconds / 4, 3 * 2**20)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders with known results: the second takes twice as long and has another last token."""
    for name, seconds, last in (("faops", 2.0, 9), ("dynamic", 4.0, 8)):
        generate = partial(made_up, seconds, [[1] * 4, [2] * 7, [last]])
        monkeypatch.setitem(CONTENDERS, name, generation.Contender(name.upper(), generate))


def test_figures(two: None, text: list[int]) -> None:
    found = measure(WORKLOAD, None, text, ["faops", "dynamic"], Effort(0.0, min_rounds=3, warmup_rounds=0))
    runs = found["runs"]
    assert [runs[name]["tokens_per_second"] for name in ("faops", "dynamic")] == [6.0, 3.0]
    assert [runs[name]["same_tokens"] for name in ("faops", "dynamic")] == [12, 11]
    assert runs["dynamic"]["seconds"]["whole"]["samples"] == [4.0] * 3
    assert runs["dynamic"]["seconds"]["first"]["median"] == 1.0
    assert found["speedup"]["dynamic"]["of_pairs"] == 2.0 and "faops" not in found["speedup"]
    runs["faops"]["peak_bytes"] = 5 * 2**20
    titles = {name: CONTENDERS[name].title for name in runs}
    heading, rows = generation.table({"cases": [found], "contenders": titles})
    assert rows == [
        ["small: FAOPS", "6.0", "–", "0.5", "3 MiB", "5 MiB", "12 of 12"],
        ["small: DYNAMIC", "3.0", "2.00", "1.0", "3 MiB", "–", "11 of 12"],
    ]
    assert len(heading) == len(rows[0])


def test_the_file_has_every_figure(
    two: None, text: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "prepare", lambda: (None, text))
    monkeypatch.setattr(generation.memory, "in_child", lambda function, *arguments: 7 * 2**20)
    monkeypatch.setattr(record, "QUICK_RESULTS", tmp_path)
    monkeypatch.setenv("FAOPS_TUNING", "1")
    assert generation.main(["--quick", "--peers", "faops,dynamic", "--workloads", "mixed"]) == 0
    (path,) = tmp_path.rglob("generation.json")
    (case,) = record.read(path)["cases"]
    assert case["case"]["name"] == "mixed" and set(case["runs"]) == {"faops", "dynamic"}
    assert "transformers" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--peers", "faops,other"], ["--workloads", "huge"]])
def test_wrong_arguments_are_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generation.parse(arguments)
    assert " ".join(arguments) in capsys.readouterr().err
