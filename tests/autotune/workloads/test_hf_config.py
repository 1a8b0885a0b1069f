"""The attention that is read from a config.json: of many families, compared with what models really do, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from faops.autotune.workloads import from_hf_config, hf_config
from faops.autotune.workloads.attention_config import AttentionConfig
from faops.errors import PlanError


def config_file(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return path


LLAMA = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LLAMA, AttentionConfig(32, 8, 128)),
        ({**LLAMA, "sliding_window": 0}, AttentionConfig(32, 8, 128)),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 28,
          "num_hidden_layers": 28}, AttentionConfig(32, 8, 128)),
        ({"model_type": "dbrx", "n_heads": 48, "d_model": 6144, "attn_config": {"kv_n_heads": 8}},
         AttentionConfig(48, 8, 128)),
        ({"model_type": "mpt", "n_heads": 32, "d_model": 4096, "attn_config": {"alibi": False}},
         AttentionConfig(32, 32, 128)),
        ({**LLAMA, "layer_types": ["linear_attention", "full_attention"]}, AttentionConfig(32, 8, 128)),
        ({"model_type": "omni", "thinker_config": {"text_config": LLAMA, "vision_config": {}}},
         AttentionConfig(32, 8, 128)),
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
    assert hf_config.read(path) == expected
    assert from_hf_config(tmp_path).problems == from_hf_config(path).problems != []


# ------------------------------------------------------------------------------- what models in transformers ask

# Small models with numbers that no class has by itself. WINDOW is shorter than what the models read.
WINDOW = {"sliding_window": 5}
PLAIN = {"num_hidden_layers": 4, "vocab_size": 64, "hidden_size": 96, "intermediate_size": 32, "num_attention_heads": 6,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 24}
OPENAI = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {**PLAIN, "num_key_value_heads": 6, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 16, "v_head_dim": 12}  # fmt: skip
EXPERTS = {"n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FEW_EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
IMAGE = {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 32, "num_attention_heads": 6, "image_size": 32,
         "patch_size": 8}  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Mistral": {**GROUPED, **WINDOW},
    "Qwen2": {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "Qwen3": WIDE,
    "Gemma2": {**WIDE, **WINDOW},
    "Gemma3Text": {**WIDE, **WINDOW, "num_hidden_layers": 6},
    "GptOss": {**WIDE, **WINDOW, **FEW_EXPERTS},
    "Phi3": {**GROUPED, **WINDOW},
    "GPT2": OPENAI,
    "DeepseekV3": {**LATENT, **EXPERTS},
    "Bert": PLAIN,
    "ModernBert": {**PLAIN, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "ViT": IMAGE,
}
MORE_MODELS: dict[str, dict[str, Any]] = {
    "Apertus": GROUPED,
    "BioGpt": PLAIN,
    "Cohere2": {**GROUPED, **WINDOW},
    "DeepseekV2": {**LATENT, **EXPERTS, "topk_method": "greedy"},
    "DistilBert": {"n_layers": 2, "n_heads": 4, "dim": 64, "hidden_dim": 32, "vocab_size": 64},
    "Electra": PLAIN,
    "Ernie4_5": WIDE,
    "EuroBert": {**PLAIN, "num_key_value_heads": 6, "mask_token_id": 3},
    "Exaone4": {**GROUPED, **WINDOW, "sliding_window_pattern": 2},
    "GPTBigCode": OPENAI,
    "GPTNeoX": PLAIN,
    "Gemma": WIDE,
    "Glm4": WIDE,
    "Granite": GROUPED,
    "Lfm2": GROUPED,
    "MiniCPM3": {name: value for name, value in LATENT.items() if name != "num_key_value_heads"},
    "Mixtral": {**GROUPED, **FEW_EXPERTS},
    "ModernBertDecoder": {**PLAIN, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "Nemotron": WIDE,
    "OPT": {"num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 96, "ffn_dim": 32, "num_attention_heads": 6,
            "word_embed_proj_dim": 96},
    "Olmo2": GROUPED,
    "Olmo3": {**GROUPED, **WINDOW},
    "Persimmon": PLAIN,
    "Phi": GROUPED,
    "Qwen2Moe": {**GROUPED, **FEW_EXPERTS},
    "Qwen3Moe": {**WIDE, **FEW_EXPERTS},
    "Qwen3Next": {**WIDE, **FEW_EXPERTS},
    "Roberta": PLAIN,
    "SmolLM3": GROUPED,
    "StableLm": GROUPED,
    "Starcoder2": {**GROUPED, **WINDOW},
    "CLIPVision": IMAGE,
    "DINOv3ViT": {**IMAGE, "num_register_tokens": 3},
    "DeiT": IMAGE,
    "Dinov2": IMAGE,
    "Dinov2WithRegisters": {**IMAGE, "num_register_tokens": 3},
    "IJepa": IMAGE,
    "SiglipVision": IMAGE,
    "ViTMSN": IMAGE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values"),
    [*MODELS.items(), *(pytest.param(*item, marks=pytest.mark.full) for item in MORE_MODELS.items())],
)
def test_a_model_asks_what_was_read(tmp_path: Path, name: str, values: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    from .probe import TOKENS, asked_by_model, asked_by_problem

    getattr(transformers, f"{name}Config")(**values).save_pretrained(tmp_path)
    lengths: dict[str, Any] = {} if "image_size" in values else {"prompt": TOKENS, "context": []}
    problems = from_hf_config(tmp_path, **lengths).problems
    assert {asked_by_problem(problem) for problem in problems} == asked_by_model(tmp_path) != set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Falcon", AttentionConfig(71, 1, 64, positions=2048)),
        ("Mpt", AttentionConfig(16, 16, 128, alibi=True, positions=2048)),
        ("Dbrx", AttentionConfig(16, 1, 128, positions=2048)),
        ("XGLM", AttentionConfig(16, 16, 64, positions=2048)),
        ("Llava", AttentionConfig(32, 32, 128, positions=2048)),
        ("Gemma3", AttentionConfig(8, 4, 256, windows=(4096, 0), positions=131072)),
        ("Qwen2_5_VL", AttentionConfig(64, 8, 128, positions=32768)),
        ("CLIPText", AttentionConfig(8, 8, 64, positions=77)),
        ("SiglipText", AttentionConfig(12, 12, 64, positions=64, causal=False)),
    ],
)
def test_what_transformers_writes_by_itself(tmp_path: Path, name: str, expected: AttentionConfig) -> None:
    transformers = pytest.importorskip("transformers")
    getattr(transformers, f"{name}Config")().save_pretrained(tmp_path)
    assert hf_config.read(tmp_path) == expected


@pytest.mark.parametrize("name", ["Qwen2", "Gemma2", "Gemma3Text", "GptOss", "Cohere2"])
def test_configs_from_before_layers_were_listed(tmp_path: Path, name: str) -> None:
    """Older files have no layer_types; the model's class knows which layers slide."""
    transformers = pytest.importorskip("transformers")
    getattr(transformers, f"{name}Config")(**{**MODELS, **MORE_MODELS}[name]).save_pretrained(tmp_path)
    listed = hf_config.read(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data.pop("layer_types")
    assert hf_config.read(config_file(tmp_path, **data)) == listed
    assert listed.windows == (5, 0)


def test_a_text_encoder_made_of_a_decoder(tmp_path: Path) -> None:
    """Its window counts both sides, as in embedding models of Gemma 3."""
    values = {**LLAMA, "model_type": "gemma3_text", "sliding_window": 512, "use_bidirectional_attention": True}
    found = hf_config.read(config_file(tmp_path, **values))
    assert found == AttentionConfig(32, 8, 128, windows=(257, 0), causal=False)


# ------------------------------------------------------------------------------------------------------ errors


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
        ({**LLAMA, "is_encoder_decoder": True}, "is_encoder_decoder: encoder-decoder"),
        ({**LLAMA, "llm_config": {"text_config": []}}, "text_config: expected a JSON object, got list"),
        ({**LLAMA, "sliding_window": -1}, "sliding_window: got -1, expected a whole number of at least 0"),
        ({**LLAMA, "layer_types": ["chunked_attention"]}, "layer_types: chunked_attention is not derived"),
        ({**LLAMA, "layer_types": ["linear_attention", "conv"]}, "layer_types: no layer has attention"),
        ({**LLAMA, "model_type": "deberta-v2"}, "model_type: deberta-v2 has no attention that faops computes"),
        ({**LLAMA, "global_head_dim": 512}, "global_head_dim: layers with other heads are not derived"),
        ({**LLAMA, "qk_rope_head_dim": 64}, "qk_nope_head_dim is missing"),
        ({**LLAMA, "image_size": 224, "patch_size": [14, 14]}, "patch_size: got [14, 14]"),
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


def test_a_config_that_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(PlanError, match="cannot be read"):
        from_hf_config(path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/config.json", "x" * 5000, "a\0b"])
def test_a_path_that_cannot_be(path: str) -> None:
    with pytest.raises(PlanError):
        from_hf_config(path)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        from_hf_config(tmp_path / "nowhere")


def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    found = from_hf_config(LLAMA, prompt=128)
    assert found.problems == from_hf_config(config_file(tmp_path, **LLAMA), prompt=128).problems
    assert found.name == "config.json"
    with pytest.raises(PlanError, match=r"^config\.json: num_attention_heads is missing"):
        from_hf_config({"hidden_size": 5})
    with pytest.raises(PlanError, match=r"^config\.json: text_config: expected a JSON object, got list"):
        from_hf_config({"text_config": [1]})
