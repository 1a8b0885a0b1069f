"""The attention of well-known models.

The numbers are those of each model's config.json on the Hugging Face hub, under the name in the last column. A model
that differs from it in training alone (-Instruct, -it, -chat, ...) has the same.
"""

from __future__ import annotations

from typing import NamedTuple

from faops.autotune.workloads.attention_config import AttentionConfig

# Parts of hub names that say how a model was trained or stored, and nothing of its attention.
ENDINGS = ("-it", "-pt", "-chat", "-base", "-hf")
BEGINNINGS = ("meta-",)
ANYWHERE = ("-instruct",)


class Model(NamedTuple):
    """A model's attention and its name on the hub."""

    config: AttentionConfig
    hub: str


def _model(
    hub: str, heads_q: int, heads_kv: int, head_dim: int, positions: int, head_dim_v: int = 0,
    windows: tuple[int, ...] = (0,), **traits: bool,
) -> Model:  # fmt: skip
    config = AttentionConfig(
        heads_q, heads_kv, head_dim, head_dim_v, windows=windows, positions=positions, **traits
    )  # fmt: skip
    return Model(config, hub)


def _image_model(hub: str, heads: int, head_dim: int, tokens: int) -> Model:
    """``tokens``: patches and the class token."""
    return Model(AttentionConfig(heads, heads, head_dim, causal=False, fixed_length=tokens), hub)


K = 1024

# fmt: off
MODELS: dict[str, Model] = {
    # query heads, key/value heads, head dim, longest sequence
    "llama-2-7b":     _model("meta-llama/Llama-2-7b-hf",          32,  32, 128, 4 * K),
    "llama-2-13b":    _model("meta-llama/Llama-2-13b-hf",         40,  40, 128, 4 * K),
    "llama-2-70b":    _model("meta-llama/Llama-2-70b-hf",         64,   8, 128, 4 * K),
    "llama-3-8b":     _model("meta-llama/Meta-Llama-3-8B",        32,   8, 128, 8 * K),
    "llama-3-70b":    _model("meta-llama/Meta-Llama-3-70B",       64,   8, 128, 8 * K),
    "llama-3.1-8b":   _model("meta-llama/Llama-3.1-8B",           32,   8, 128, 128 * K),
    "llama-3.1-70b":  _model("meta-llama/Llama-3.1-70B",          64,   8, 128, 128 * K),
    "llama-3.1-405b": _model("meta-llama/Llama-3.1-405B",        128,   8, 128, 128 * K),
    "llama-3.2-1b":   _model("meta-llama/Llama-3.2-1B",           32,   8,  64, 128 * K),
    "llama-3.2-3b":   _model("meta-llama/Llama-3.2-3B",           24,   8, 128, 128 * K),
    "llama-3.3-70b":  _model("meta-llama/Llama-3.3-70B-Instruct", 64,   8, 128, 128 * K),

    "qwen2.5-0.5b":   _model("Qwen/Qwen2.5-0.5B",                 14,   2,  64, 32 * K),
    "qwen2.5-1.5b":   _model("Qwen/Qwen2.5-1.5B",                 12,   2, 128, 128 * K),
    "qwen2.5-3b":     _model("Qwen/Qwen2.5-3B",                   16,   2, 128, 32 * K),
    "qwen2.5-7b":     _model("Qwen/Qwen2.5-7B",                   28,   4, 128, 128 * K),
    "qwen2.5-14b":    _model("Qwen/Qwen2.5-14B",                  40,   8, 128, 128 * K),
    "qwen2.5-32b":    _model("Qwen/Qwen2.5-32B",                  40,   8, 128, 128 * K),
    "qwen2.5-72b":    _model("Qwen/Qwen2.5-72B",                  64,   8, 128, 128 * K),
    "qwen3-0.6b":     _model("Qwen/Qwen3-0.6B",                   16,   8, 128, 40 * K),
    "qwen3-1.7b":     _model("Qwen/Qwen3-1.7B",                   16,   8, 128, 40 * K),
    "qwen3-4b":       _model("Qwen/Qwen3-4B",                     32,   8, 128, 40 * K),
    "qwen3-8b":       _model("Qwen/Qwen3-8B",                     32,   8, 128, 40 * K),
    "qwen3-14b":      _model("Qwen/Qwen3-14B",                    40,   8, 128, 40 * K),
    "qwen3-32b":      _model("Qwen/Qwen3-32B",                    64,   8, 128, 40 * K),
    "qwen3-30b-a3b":  _model("Qwen/Qwen3-30B-A3B",                32,   4, 128, 40 * K),
    "qwen3-235b-a22b":_model("Qwen/Qwen3-235B-A22B",              64,   4, 128, 40 * K),

    "mistral-7b-v0.1":_model("mistralai/Mistral-7B-v0.1",         32,   8, 128, 32 * K, windows=(4096,)),
    "mistral-7b-v0.3":_model("mistralai/Mistral-7B-v0.3",         32,   8, 128, 32 * K),
    "mixtral-8x7b":   _model("mistralai/Mixtral-8x7B-v0.1",       32,   8, 128, 32 * K),
    "mixtral-8x22b":  _model("mistralai/Mixtral-8x22B-v0.1",      48,   8, 128, 64 * K),

    "gemma-2-2b":     _model("google/gemma-2-2b",                  8,   4, 256, 8 * K, windows=(4096, 0), softcap=True),
    "gemma-2-9b":     _model("google/gemma-2-9b",                 16,   8, 256, 8 * K, windows=(4096, 0), softcap=True),
    "gemma-2-27b":    _model("google/gemma-2-27b",                32,  16, 128, 8 * K, windows=(4096, 0), softcap=True),
    "gemma-3-1b":     _model("google/gemma-3-1b-pt",               4,   1, 256, 32 * K, windows=(512, 0)),
    "gemma-3-4b":     _model("google/gemma-3-4b-pt",               8,   4, 256, 128 * K, windows=(1024, 0)),
    "gemma-3-12b":    _model("google/gemma-3-12b-pt",             16,   8, 256, 128 * K, windows=(1024, 0)),
    "gemma-3-27b":    _model("google/gemma-3-27b-pt",             32,  16, 128, 128 * K, windows=(1024, 0)),

    # Latent attention, keys and values expanded as they are for reading: 128 dims without and 64 with positions.
    "deepseek-v2-lite":_model("deepseek-ai/DeepSeek-V2-Lite",      16,  16, 192, 160 * K, head_dim_v=128),
    "deepseek-v2":    _model("deepseek-ai/DeepSeek-V2",          128, 128, 192, 160 * K, head_dim_v=128),
    "deepseek-v3":    _model("deepseek-ai/DeepSeek-V3",          128, 128, 192, 160 * K, head_dim_v=128),

    "gpt-oss-20b":    _model("openai/gpt-oss-20b",                64,   8,  64, 128 * K, windows=(128, 0), sinks=True),
    "gpt-oss-120b":   _model("openai/gpt-oss-120b",               64,   8,  64, 128 * K, windows=(128, 0), sinks=True),
    "phi-3-mini-4k":  _model("microsoft/Phi-3-mini-4k-instruct",  32,  32,  96, 4 * K, windows=(2047,)),
    "phi-4":          _model("microsoft/phi-4",                   40,  10, 128, 16 * K),
    "phi-4-mini":     _model("microsoft/Phi-4-mini-instruct",     24,   8, 128, 128 * K),
    "smollm2-135m":   _model("HuggingFaceTB/SmolLM2-135M",         9,   3,  64, 8 * K),
    "smollm2-360m":   _model("HuggingFaceTB/SmolLM2-360M",        15,   5,  64, 8 * K),
    "smollm2-1.7b":   _model("HuggingFaceTB/SmolLM2-1.7B",        32,  32,  64, 8 * K),
    "falcon-7b":      _model("tiiuae/falcon-7b",                  71,   1,  64, 2 * K),
    "falcon-40b":     _model("tiiuae/falcon-40b",                128,   8,  64, 2 * K),
    "bloom-560m":     _model("bigscience/bloom-560m",             16,  16,  64, 2 * K, alibi=True),
    "bloom-7b1":      _model("bigscience/bloom-7b1",              32,  32, 128, 2 * K, alibi=True),
    "bloom":          _model("bigscience/bloom",                 112, 112, 128, 2 * K, alibi=True),
    "gpt2":           _model("openai-community/gpt2",             12,  12,  64, K),
    "gpt2-medium":    _model("openai-community/gpt2-medium",      16,  16,  64, K),
    "gpt2-large":     _model("openai-community/gpt2-large",       20,  20,  64, K),
    "gpt2-xl":        _model("openai-community/gpt2-xl",          25,  25,  64, K),

    # They see both ways.
    "bert-base":      _model("google-bert/bert-base-uncased",     12,  12,  64, 512, causal=False),
    "bert-large":     _model("google-bert/bert-large-uncased",    16,  16,  64, 512, causal=False),
    "modernbert-base": _model("answerdotai/ModernBERT-base",       12,  12,  64, 8 * K, windows=(65, 0), causal=False),
    "vit-base":       _image_model("google/vit-base-patch16-224",      12, 64, 197),
    "vit-large":      _image_model("google/vit-large-patch16-224",     16, 64, 197),
    "vit-huge":       _image_model("google/vit-huge-patch14-224-in21k",16, 80, 257),
}
# fmt: on

ALIASES = {"mistral-7b": "mistral-7b-v0.1", "deepseek-r1": "deepseek-v3"}  # R1 is V3, trained on


def resolve(name: str) -> str | None:
    """The key in MODELS of a model's own name, its alias or its name on the hub; None for an unknown one."""
    text = name.lower()
    if text in MODELS or text in ALIASES:
        return ALIASES.get(text, text)
    return _by_hub_name().get(_plain(text))


def _by_hub_name() -> dict[str, str]:
    return {_plain(model.hub.lower()): name for name, model in MODELS.items()}


def _plain(hub: str) -> str:
    """A hub name without what its endings and beginnings say of training."""
    owner, slash, name = hub.rpartition("/")
    for part in ANYWHERE:
        name = name.replace(part, "")
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    for beginning in BEGINNINGS:
        name = name.removeprefix(beginning)
    return f"{owner}{slash}{name}"
