"""Problems of known models, of config files and of shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faops.autotune import tuner
from faops.autotune.workloads import (
    PHASES,
    describe,
    from_attention_config,
    from_model,
    from_shapes,
    hf_config,
    model_names,
)
from faops.autotune.workloads.attention_config import AttentionConfig
from faops.autotune.workloads.models import ALIASES, MODELS, resolve
from faops.device import known
from faops.errors import PlanError
from faops.problem import AttentionProblem, Band, parse_shape


def test_a_model_gives_reading_and_generating() -> None:
    found = from_model("smollm2-135m", prompt=100, context=[300])
    assert found.name == "smollm2-135m"
    shared: dict[str, Any] = {"dtype": "float32", "heads_q": 9, "heads_kv": 3, "head_dim": 64, "head_dim_v": 64}
    assert found.problems == [
        AttentionProblem(seqlen_q=100, seqlen_k=100, band=Band(-1, 0), **shared),
        AttentionProblem(seqlen_q=1, seqlen_k=300, **shared),
    ]


def test_training_adds_forward_with_lse_and_backward() -> None:
    found = from_model("gpt2", dtype="bf16", batch=4, prompt=[64], context=[], training=True).problems
    assert [(p.op, p.need_lse) for p in found] == [("forward", False), ("forward", True), ("backward", True)]
    assert {(p.dtype, p.batch, p.heads_q, p.heads_kv) for p in found} == {("bfloat16", 4, 12, 12)}


def test_the_kv_cache_call_is_added_on_request() -> None:
    plain = from_model("llama-3-8b", prompt=[], context=512).problems
    both = from_model("llama-3-8b", prompt=[], context=512, kv_cache=True).problems
    assert [p.op for p in plain] == ["forward"]
    assert [(p.op, p.append, p.seqlen_k) for p in both] == [("forward", False, 512), ("decode", True, 512)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["forward", "generate"]),
        ({"phases": "prefill"}, ["forward"]),
        ({"phases": ["decode"]}, ["decode"]),
        ({"phases": ["training"]}, ["forward lse", "backward"]),
        ({"phases": ["prefill", "decode", "training"]}, ["forward", "forward lse", "backward", "decode"]),
        ({"phases": [], "kv_cache": True}, ["decode"]),
        ({"training": True, "kv_cache": True}, ["forward", "forward lse", "backward", "generate", "decode"]),
        ({"page_size": 16}, ["forward", "generate", "decode paged"]),
        ({"phases": "prefill", "packed": True}, ["forward varlen"]),
        ({"phases": ["training", "generate"], "packed": True}, ["forward lse varlen", "backward varlen", "generate"]),
    ],
)  # fmt: skip
def test_phases(options: dict[str, Any], expected: list[str]) -> None:
    def words(problem: AttentionProblem) -> str:
        name = "generate" if problem.op == "forward" and problem.seqlen_q == 1 else problem.op
        lse = " lse" if problem.op == "forward" and problem.need_lse else ""
        return name + lse + (f" {problem.layout}" if problem.layout != "dense" else "")

    assert [words(problem) for problem in from_model("gpt2", prompt=64, context=96, **options).problems] == expected


def test_pages_have_room_for_the_keys() -> None:
    (problem,) = from_model("gemma-2-9b", phases="decode", page_size=16, context=[250]).problems
    assert (problem.seqlen_k, problem.page_size, problem.layout, problem.append) == (256, 16, "paged", True)
    windowed, full = from_model("gemma-2-9b", phases="decode", page_size=64, context=[8000]).problems
    assert (windowed.band, full.band) == (Band(4095, -1), Band())  # a cache keeps what a window leaves behind


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert-base", {"phases": ["decode", "generate"]}, "sees both ways, which generates nothing, has no problem of"),
        ("gpt2", {"prompt": [], "context": []}, "a causal model has no problem of generate or prefill with these"),
        ("gpt2", {"phases": []}, "nothing to tune"),
        ("gpt2", {"phases": ["reading"]}, "phases: got 'reading', expected prefill, generate, decode, training"),
        ("gpt2", {"page_size": -16}, "page_size: got -16"),
        ("gpt2", {"page_size": "16"}, "page_size: got '16'"),
    ],
)
def test_workloads_of_nothing(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        from_model(name, **options)


def test_windows_and_softcap() -> None:
    found = from_model("gemma-2-9b", prompt=8192, context=8192).problems
    assert [(p.seqlen_q, p.seqlen_k, p.band) for p in found] == [
        (8192, 8192, Band(4095, 0)),  # 4096 keys, the row's own among them
        (8192, 8192, Band(-1, 0)),
        (1, 4096, Band()),  # a layer with a window keeps no more keys than it sees
        (1, 8192, Band()),
    ]
    assert all(p.softcap for p in found)
    short = from_model("gemma-2-9b", prompt=1024, context=[]).problems
    assert [p.band for p in short] == [Band(-1, 0)]  # both kinds of layer ask the same
    assert all(p.sinks for p in from_model("gpt-oss-20b").problems)


def test_encoders_see_both_ways_and_generate_nothing() -> None:
    bert = from_model("bert-base").problems
    assert all(p.band == Band() and p.seqlen_q == p.seqlen_k <= 512 for p in bert)
    assert [(p.seqlen_q, p.seqlen_k) for p in from_model("vit-base").problems] == [(197, 197)]
    config = AttentionConfig(4, 4, 64, windows=(65, 0), causal=False)
    assert [p.band for p in from_attention_config("mine", config, prompt=256).problems] == [Band(64, 64), Band()]


@pytest.mark.parametrize("name", model_names())
def test_every_model_has_problems_with_keys_of_their_own(name: str) -> None:
    problems = from_model(name, training=True, kv_cache=True).problems
    assert problems
    assert len({p.key() for p in problems}) == len(problems)
    for problem in problems:
        assert problem.heads_q % problem.heads_kv == 0
        assert problem.band == problem.band.simplify(problem.seqlen_q, problem.seqlen_k)
        assert (problem.op == "backward") <= problem.need_lse
    assert {p.op for p in problems} >= {"forward", "backward"}


def test_the_default_dtype_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from faops.autotune.workloads import attention_config

    for name, expected in (("cpu", "float32"), ("t4", "float16"), ("h200", "bfloat16"), ("910b", "bfloat16")):
        profile = known(name)
        monkeypatch.setattr(attention_config, "detect", lambda device, profile=profile: profile)
        assert from_model("gpt2", device=torch.device("meta")).problems[0].dtype == expected, name


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lama-3-8b", "did you mean llama-3-8b"), ("SmolLM2", "smollm2-135m"), ("zzz", "known are bert-base")],
)
def test_an_unknown_model_lists_close_names(name: str, hint: str) -> None:
    with pytest.raises(PlanError, match=f"model: got '{name}', which is not known") as raised:
        from_model(name)
    assert hint in str(raised.value)
    assert from_model("LLaMA-3-8B").name == "llama-3-8b"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("google/gemma-3-4b-it", "gemma-3-4b"),
        ("Qwen/Qwen3-30B-A3B-Base", "qwen3-30b-a3b"),
        ("mistral-7b", "mistral-7b-v0.1"),
        ("DeepSeek-R1", "deepseek-v3"),
    ],
)
def test_names_on_the_hub_and_aliases(name: str, expected: str) -> None:
    assert from_model(name, prompt=64, context=[]).name == expected


def test_every_model_is_found_by_its_name_on_the_hub() -> None:
    assert {resolve(model.hub) for model in MODELS.values()} == set(MODELS)
    assert set(ALIASES.values()) <= set(MODELS) and not set(ALIASES) & set(MODELS)
    assert resolve("nobody/llama-3-8b") is None


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("gpt2", "GPT2Config"),
        ("bert-base", "BertConfig"),
        ("vit-base", "ViTConfig"),
        ("modernbert-base", "ModernBertConfig"),
        ("mistral-7b-v0.1", "MistralConfig"),
        ("mixtral-8x7b", "MixtralConfig"),
        ("gemma-2-2b", "Gemma2Config"),
        ("gpt-oss-20b", "GptOssConfig"),
        ("deepseek-v3", "DeepseekV3Config"),
        ("falcon-7b", "FalconConfig"),
    ],
)
def test_models_that_a_class_of_transformers_has_as_its_default(tmp_path: Path, name: str, class_name: str) -> None:
    transformers = pytest.importorskip("transformers")
    getattr(transformers, class_name)().save_pretrained(tmp_path)
    assert replace(hf_config.read(tmp_path), positions=0) == replace(MODELS[name].config, positions=0)


def test_models_in_words() -> None:
    assert describe("llama-3-8b") == "32 heads of 128, 8 key/value heads, causal"
    assert describe("gemma-2-9b") == "16 heads of 256, 8 key/value heads, causal, windows of 4096 and none, softcap"
    assert describe("deepseek-v3") == "128 heads of 192/128, causal"
    assert describe("falcon-7b") == "71 heads of 64, 1 key/value head, causal"
    assert describe("bert-base") == "12 heads of 64, both ways"
    assert describe("gpt-oss-20b").endswith("windows of 128 and none, sinks") and describe("bloom").endswith("alibi")


def test_all_of_latent_attention_has_a_kernel_here_and_what_has_none_is_named() -> None:
    latent = from_model("deepseek-v3", phases=PHASES, page_size=64, prompt=128, context=256)
    assert {(p.head_dim, p.head_dim_v, p.heads_kv) for p in latent.problems} == {(192, 128, 128)}
    assert {row["status"] for row in tuner.estimate(latent.problems)} == {"to tune"}
    (row,) = tuner.estimate(from_model("deepseek-v3", dtype="fp8", phases="prefill", prompt=128).problems)
    assert row["status"] == "failed" and "no kernel can run forward float8_e4m3fn" in row["message"]


def test_the_page_of_models_is_complete() -> None:
    """docs/models.md has a row for each model, as ``python -m tests.autotune.workloads.test_workloads`` prints it."""
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    assert models_table() in page


def models_table() -> str:
    rows = [f"| `{name}` | {model.hub} | {model.config} |" for name, model in MODELS.items()]
    return "\n".join(["| Name | On the hub | Attention |", "|---|---|---|", *rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: got 0"),
        ({"batch": True}, "batch: got True"),
        ({"prompt": [16, -1]}, "prompt: got -1"),
        ({"context": "many"}, "context: got 'm'"),
        ({"dtype": "int3"}, "dtype 'int3'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        from_model("gpt2", **options)


def test_shapes() -> None:
    text = "b=1,sq=256,h=4,d=64,causal=1"
    assert from_shapes([text, "sq=200,h=4,d=64,causal=1", "sq=1,sk=64,h=4,d=64"]).problems == [
        parse_shape(text),
        parse_shape("sq=1,sk=64,h=4,d=64"),
    ]
    with pytest.raises(PlanError, match="unknown name 'colour'"):
        from_shapes(["sq=1,h=1,d=64,colour=1"])


if __name__ == "__main__":
    print(models_table())
