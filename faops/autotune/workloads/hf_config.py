"""The attention of a model from the config.json that comes with it on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faops.autotune.workloads.attention_config import AttentionConfig
from faops.errors import PlanError

# Names of one number in the configs of different model families.
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
HEADS_KV = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")

ENCODERS = {"albert", "bert", "camembert", "deit", "distilbert", "dinov2", "electra", "modernbert", "mpnet", "roberta",
            "siglip_vision_model", "clip_vision_model", "vit", "xlm-roberta"}  # fmt: skip
MIXED_WINDOWS = {"gemma2", "gemma3", "gemma3_text", "gpt_oss", "cohere2"}  # some layers slide, others do not


def read(path: str | Path) -> AttentionConfig:
    """Read ``path``, a config.json or a folder that holds one.

    Raises PlanError, with the name of the missing or impossible field.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "config.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise PlanError(f"{file} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise PlanError(f"{file}: expected a JSON object, got {type(data).__name__}")
    inner = data.get("text_config", data)
    if not isinstance(inner, dict):
        raise PlanError(f"{file}: text_config: expected a JSON object, got {type(inner).__name__}")
    return _Reader(file, inner).config()


class _Reader:
    def __init__(self, file: Path, data: dict[str, Any]) -> None:
        self.file = file
        self.data = data
        self.model_type = str(data.get("model_type", ""))

    def config(self) -> AttentionConfig:
        if self.data.get("is_encoder_decoder"):
            raise PlanError(f"{self.file}: encoder-decoder models are not derived; give their shapes with --shape")
        heads_q = self.number(HEADS)
        head_dim, head_dim_v = self.head_dims(heads_q)
        try:
            return AttentionConfig(
                heads_q=heads_q,
                heads_kv=self.heads_kv(heads_q),
                head_dim=head_dim,
                head_dim_v=head_dim_v,
                windows=self.windows(),
                causal=self.model_type not in ENCODERS or bool(self.data.get("is_decoder")),
                softcap=bool(self.data.get("attn_logit_softcapping")),
                alibi=self.model_type in ("bloom", "mpt") or bool(self.data.get("alibi")),
                sinks=self.model_type == "gpt_oss",
                positions=self.number(POSITIONS, default=0),
                fixed_length=self.patches(),
            )
        except PlanError as error:
            raise PlanError(f"{self.file}: {error}") from None

    def number(self, names: tuple[str, ...], default: int | None = None) -> int:
        """The first of ``names`` that is given; without a ``default`` one of them must be."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PlanError(f"{self.file}: {name}: got {value!r}, expected a whole number of at least 1")
            return value
        if default is None:
            others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
            raise PlanError(f"{self.file}: {names[0]} is missing{others}")
        return default

    def heads_kv(self, heads_q: int) -> int:
        shared = self.data.get("multi_query") and not self.data.get("new_decoder_architecture")
        return self.number(HEADS_KV, default=1 if shared else heads_q)

    def head_dims(self, heads_q: int) -> tuple[int, int]:
        """Head dims of queries and of values (0: the same)."""
        if self.data.get("qk_rope_head_dim"):  # latent attention: a part without and a part with positions
            rope, plain = self.number(("qk_rope_head_dim",)), self.number(("qk_nope_head_dim",))
            return rope + plain, self.number(("v_head_dim",))
        if self.data.get("head_dim"):
            return self.number(("head_dim",)), 0
        hidden = self.number(HIDDEN)
        if hidden % heads_q:
            raise PlanError(f"{self.file}: head_dim is missing and {hidden} is not a multiple of {heads_q} heads")
        return hidden // heads_q, 0

    def windows(self) -> tuple[int, ...]:
        """The kinds of layers: 0 for full attention, else the window."""
        if self.data.get("use_sliding_window") is False:
            return (0,)
        window = self.number(("sliding_window",), default=0)
        if local := self.number(("local_attention",), default=0):  # counts both sides and the row itself
            return (local // 2 + 1, 0)
        kinds = self.data.get("layer_types")
        if isinstance(kinds, list) and kinds:
            if "sliding_attention" not in kinds:
                return (0,)
            window = self.number(("sliding_window",))
            return (window,) if set(kinds) == {"sliding_attention"} else (window, 0)
        if not window:
            return (0,)
        mixed = self.model_type in MIXED_WINDOWS or "sliding_window_pattern" in self.data
        return (window, 0) if mixed else (window,)

    def patches(self) -> int:
        """Tokens of an image model: its patches and a class token; 0 for other models."""
        if "patch_size" not in self.data or "image_size" not in self.data:
            return 0
        side = self.number(("image_size",)) // self.number(("patch_size",))
        return side * side + 1
