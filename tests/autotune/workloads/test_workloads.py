"""Problems of known models, of config files and of shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from faops.autotune import workloads
from faops.autotune.workloads import from_attention_config, from_hf_config, from_model, from_shapes, model_names
from faops.autotune.workloads.attention_config import AttentionConfig
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


# ------------------------------------------------------------------------------------------------ config.json


def config_file(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return path


LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LLAMA, AttentionConfig(32, 8, 128)),
        ({**LLAMA, "head_dim": 64, "max_position_embeddings": 99}, AttentionConfig(32, 8, 64, positions=99)),
        ({"model_type": "gpt2", "n_head": 12, "n_embd": 768, "n_positions": 1024},
         AttentionConfig(12, 12, 64, positions=1024)),
        ({"model_type": "falcon", "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True},
         AttentionConfig(71, 1, 64)),
        ({**LLAMA, "model_type": "mistral", "sliding_window": 4096}, AttentionConfig(32, 8, 128, windows=(4096,))),
        ({**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
         AttentionConfig(32, 8, 128)),
        ({**LLAMA, "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"] * 2},
         AttentionConfig(32, 8, 128, windows=(512, 0))),
        ({**LLAMA, "sliding_window": 512, "layer_types": ["full_attention"]}, AttentionConfig(32, 8, 128)),
        ({**LLAMA, "sliding_window": 512, "layer_types": ["sliding_attention"]},
         AttentionConfig(32, 8, 128, windows=(512,))),
        ({**LLAMA, "model_type": "gemma2", "sliding_window": 4096, "attn_logit_softcapping": 50.0},
         AttentionConfig(32, 8, 128, windows=(4096, 0), softcap=True)),
        ({"model_type": "llava", "text_config": LLAMA, "vision_config": {"num_attention_heads": 3}},
         AttentionConfig(32, 8, 128)),
        ({"model_type": "bert", "num_attention_heads": 12, "hidden_size": 768},
         AttentionConfig(12, 12, 64, causal=False)),
        ({"model_type": "vit", "num_attention_heads": 12, "hidden_size": 768, "image_size": 224, "patch_size": 16},
         AttentionConfig(12, 12, 64, causal=False, fixed_length=197)),
        ({"model_type": "modernbert", "num_attention_heads": 12, "hidden_size": 768, "local_attention": 128},
         AttentionConfig(12, 12, 64, causal=False, windows=(65, 0))),
        ({"model_type": "deepseek_v3", "num_attention_heads": 128, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
          "v_head_dim": 128}, AttentionConfig(128, 128, 192, 128)),
        ({**LLAMA, "model_type": "gpt_oss", "sliding_window": 128},
         AttentionConfig(32, 8, 128, windows=(128, 0), sinks=True)),
        ({"model_type": "bloom", "n_head": 16, "hidden_size": 1024}, AttentionConfig(16, 16, 64, alibi=True)),
    ],
    ids=lambda value: value.get("model_type", "") if isinstance(value, dict) else "",
)  # fmt: skip
def test_config_files_of_many_families(tmp_path: Path, values: dict[str, Any], expected: AttentionConfig) -> None:
    path = config_file(tmp_path, **values)
    assert workloads.hf_config.read(path) == expected
    assert from_hf_config(tmp_path).problems == from_hf_config(path).problems != []


@pytest.mark.parametrize("name", ["LlamaConfig", "GPT2Config", "MistralConfig", "Gemma2Config", "Gemma3TextConfig",
                                  "BertConfig", "ViTConfig", "Qwen3Config", "GptOssConfig"])  # fmt: skip
def test_what_transformers_itself_writes(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name)()
    config.save_pretrained(tmp_path)
    found = workloads.hf_config.read(tmp_path)
    assert found.heads_q == config.num_attention_heads
    assert found.heads_kv == (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    assert found.head_dim == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    window = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or [])
    assert set(found.windows) == ({window} if not kinds else {window if kind.startswith("sl") else 0 for kind in kinds})
    assert found.softcap == bool(getattr(config, "attn_logit_softcapping", None))
    assert found.causal == (name not in ("BertConfig", "ViTConfig"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "num_attention_heads is missing"),
        ({"num_attention_heads": 8}, "hidden_size is missing"),
        ({"num_attention_heads": 7, "hidden_size": 512}, "head_dim is missing and 512 is not a multiple of 7 heads"),
        ({"num_attention_heads": "8", "hidden_size": 512}, "num_attention_heads: got '8'"),
        ({"num_attention_heads": 0, "hidden_size": 512}, "num_attention_heads: got 0"),
        ({**LLAMA, "num_key_value_heads": 5}, "expected a multiple of heads_kv=5"),
        ({**LLAMA, "layer_types": ["sliding_attention"]}, "sliding_window is missing"),
        ({**LLAMA, "text_config": 3}, "text_config: expected a JSON object"),
        ({**LLAMA, "is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_a_config_that_lacks_something(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = config_file(tmp_path, **values)
    with pytest.raises(PlanError) as raised:
        from_hf_config(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{"])
def test_a_config_that_is_no_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(PlanError, match=r"config\.json"):
        from_hf_config(tmp_path)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        from_hf_config(tmp_path / "nowhere")
