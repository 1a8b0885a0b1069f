"""The attention of well-known models, as their published config.json files give it."""

from __future__ import annotations

from faops.autotune.workloads.attention_config import AttentionConfig

# fmt: off
MODELS: dict[str, AttentionConfig] = {
    "smollm2-135m":  AttentionConfig(9, 3, 64, positions=8192),
    "smollm2-360m":  AttentionConfig(15, 5, 64, positions=8192),
    "smollm2-1.7b":  AttentionConfig(32, 32, 64, positions=8192),
    "llama-2-7b":    AttentionConfig(32, 32, 128, positions=4096),
    "llama-3-8b":    AttentionConfig(32, 8, 128, positions=8192),
    "llama-3-70b":   AttentionConfig(64, 8, 128, positions=8192),
    "llama-3.2-1b":  AttentionConfig(32, 8, 64, positions=131072),
    "llama-3.2-3b":  AttentionConfig(24, 8, 128, positions=131072),
    "qwen2.5-0.5b":  AttentionConfig(14, 2, 64, positions=32768),
    "qwen2.5-7b":    AttentionConfig(28, 4, 128, positions=131072),
    "qwen3-0.6b":    AttentionConfig(16, 8, 128, positions=40960),
    "qwen3-8b":      AttentionConfig(32, 8, 128, positions=40960),
    "mistral-7b":    AttentionConfig(32, 8, 128, windows=(4096,), positions=32768),
    "gemma-2-2b":    AttentionConfig(8, 4, 256, windows=(4096, 0), softcap=True, positions=8192),
    "gemma-2-9b":    AttentionConfig(16, 8, 256, windows=(4096, 0), softcap=True, positions=8192),
    "gemma-3-4b":    AttentionConfig(8, 4, 256, windows=(1024, 0), positions=131072),
    "gpt-oss-20b":   AttentionConfig(64, 8, 64, windows=(128, 0), sinks=True, positions=131072),
    "gpt2":          AttentionConfig(12, 12, 64, positions=1024),
    "bert-base":     AttentionConfig(12, 12, 64, causal=False, positions=512),
    "vit-base":      AttentionConfig(12, 12, 64, causal=False, fixed_length=197),  # 14 × 14 patches and one class token
}
# fmt: on
