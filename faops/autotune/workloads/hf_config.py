"""The attention of a model from the config.json that comes with it on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faops.autotune.workloads.attention_config import AttentionConfig
from faops.errors import PlanError

# Names of one number in the configs of different model families.
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
HEADS_KV = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HEAD_DIM = ("head_dim", "kv_channels")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
INNER = ("text_config", "language_config", "llm_config", "thinker_config")  # the language model inside of another

# fmt: off
ENCODERS = {
    "albert", "bert", "camembert", "clip_vision_model", "convbert", "data2vec-text", "deit", "dinov2",
    "dinov2_with_registers", "dinov3_vit", "distilbert", "electra", "ernie", "esm", "eurobert", "ijepa", "layoutlm",
    "lilt", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm",
    "siglip2_text_model", "siglip2_vision_model", "siglip_text_model", "siglip_vision_model", "vit", "vit_mae",
    "vit_msn", "xlm-roberta", "xlm-roberta-xl",
}
# Their attention is not softmax(q kᵀ + bias) v over keys and values of heads, or they have none.
OTHERS = {
    "big_bird", "deberta", "deberta-v2", "fnet", "funnel", "longformer", "mamba", "mamba2", "nystromformer", "reformer",
    "rwkv", "xlnet", "xlstm",
}
# fmt: on
MIXED_WINDOWS = {"gemma2", "gemma3", "gemma3_text", "gpt_oss", "cohere2"}  # some layers slide, others do not
EXTRA_TOKENS = {"deit": 2, "ijepa": 0, "siglip_vision_model": 0}  # beside patches; others have one, for the class
# Kinds of layers in layer_types: those with attention, and those that ask none.
FULL, SLIDING = {"full_attention", "attention", "hybrid"}, {"sliding_attention", "hybrid_sliding"}
WITHOUT = {"linear_attention", "conv", "mamba", "recurrent", "moe", "mlp", "sparse", "dense"}


def read(path: str | Path) -> AttentionConfig:
    """Read ``path``, a config.json or a folder that holds one.

    Raises PlanError, with the name of the missing or impossible field.
    """
    file = Path(path)
    try:
        file = file.expanduser()
        if file.is_dir():
            file = file / "config.json"
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{file} cannot be read: {error.strerror or error}") from None
    except RuntimeError as error:  # ~ of a user that there is not, or objects inside of each other without end
        raise PlanError(f"{file} cannot be read: {error}") from None
    except ValueError as error:
        raise PlanError(f"{file} is no JSON: {error}") from None
    return understood(data, file)


def understood(data: Any, file: str | Path) -> AttentionConfig:
    """The attention of a config that is read already; errors name ``file``. Raises PlanError."""
    if not isinstance(data, dict):
        raise PlanError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return _Reader(file, _language_model(file, data)).config()


def _language_model(file: str | Path, data: dict[str, Any]) -> dict[str, Any]:
    """The innermost config of a model that reads more than text."""
    for name in INNER:
        if data.get(name) is not None:
            if not isinstance(data[name], dict):
                raise PlanError(f"{file}: {name}: expected a JSON object, got {type(data[name]).__name__}")
            return _language_model(file, data[name])
    return data


class _Reader:
    def __init__(self, file: str | Path, data: dict[str, Any]) -> None:
        self.file = file
        self.data = data
        self.model_type = str(data.get("model_type", ""))
        inner = data.get("attn_config")  # of MPT and DBRX
        self.attention = inner if isinstance(inner, dict) else {}

    def fail(self, message: str) -> PlanError:
        return PlanError(f"{self.file}: {message}")

    def config(self) -> AttentionConfig:
        self.refuse_others()
        heads_q = self.number(HEADS)
        head_dim, head_dim_v = self.head_dims(heads_q)
        try:
            return AttentionConfig(
                heads_q=heads_q,
                heads_kv=self.heads_kv(heads_q),
                head_dim=head_dim,
                head_dim_v=head_dim_v,
                windows=self.windows(),
                causal=self.causal(),
                softcap=bool(self.data.get("attn_logit_softcapping")),
                alibi=self.model_type == "bloom" or bool(self.data.get("alibi") or self.attention.get("alibi")),
                sinks=self.model_type == "gpt_oss",
                positions=self.number(POSITIONS, default=0),
                fixed_length=self.patches(),
            )
        except PlanError as error:
            raise error if str(error).startswith(str(self.file)) else self.fail(str(error)) from None

    def refuse_others(self) -> None:
        """Raise PlanError for a model whose attention cannot be told from its config."""
        if self.data.get("is_encoder_decoder"):
            raise self.fail("is_encoder_decoder: encoder-decoder models are not derived; give shapes with --shape")
        if self.model_type in OTHERS:
            raise self.fail(f"model_type: {self.model_type} has no attention that faops computes")
        if self.data.get("global_head_dim"):
            raise self.fail("global_head_dim: layers with other heads are not derived; give shapes with --shape")

    def causal(self) -> bool:
        if self.data.get("use_bidirectional_attention"):
            return False
        return self.model_type not in ENCODERS or bool(self.data.get("is_decoder"))

    def number(self, names: tuple[str, ...], default: int | None = None, least: int = 1) -> int:
        """The first of ``names`` that is given; without a ``default`` one of them must be."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise self.fail(f"{name}: got {value!r}, expected a whole number of at least {least}")
            return value
        if default is None:
            others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
            raise self.fail(f"{names[0]} is missing{others}")
        return default

    def heads_kv(self, heads_q: int) -> int:
        if self.data.get("qk_rope_head_dim"):
            return heads_q  # latent attention gives each query head keys and values of its own
        if self.data.get("multi_query") and not self.data.get("new_decoder_architecture"):
            return 1  # whatever num_kv_heads says: Falcon's configs give the number of all heads there
        if kv_n_heads := self.attention.get("kv_n_heads"):
            return int(kv_n_heads)
        return self.number(HEADS_KV, default=heads_q)

    def head_dims(self, heads_q: int) -> tuple[int, int]:
        """Head dims of queries and of values (0: the same)."""
        if self.data.get("qk_rope_head_dim"):  # latent attention: a part without and a part with positions
            rope, plain = self.number(("qk_rope_head_dim",)), self.number(("qk_nope_head_dim",))
            return rope + plain, self.number(("v_head_dim",))
        if head_dim := self.number(HEAD_DIM, default=0):
            return head_dim, 0
        hidden = self.number(HIDDEN)
        if hidden % heads_q:
            raise self.fail(f"head_dim is missing and {hidden} is not a multiple of {heads_q} heads")
        return hidden // heads_q, 0

    def windows(self) -> tuple[int, ...]:
        """The kinds of layers: 0 for full attention, else the window."""
        if self.data.get("use_sliding_window") is False:
            return (0,)
        kinds = self.data.get("layer_types")
        if isinstance(kinds, list) and kinds:
            return self.windows_of({str(kind) for kind in kinds})
        if self.data.get("local_attention"):
            return (self.window(), 0)
        if not self.number(("sliding_window",), default=0, least=0):
            return (0,)
        full_layers = self.number(("max_window_layers",), default=0) if self.data.get("use_sliding_window") else 0
        mixed = self.model_type in MIXED_WINDOWS or "sliding_window_pattern" in self.data
        if 0 < full_layers < self.number(("num_hidden_layers",), default=0):
            mixed = True
        elif full_layers:  # all layers come before the first that slides
            return (0,)
        return (self.window(), 0) if mixed else (self.window(),)

    def windows_of(self, kinds: set[str]) -> tuple[int, ...]:
        """The windows of the kinds of layers that a config lists."""
        for kind in sorted(kinds - FULL - SLIDING - WITHOUT):
            raise self.fail(f"layer_types: {kind} is not derived; give shapes with --shape")
        found = ((self.window(),) if kinds & SLIDING else ()) + ((0,) if kinds & FULL else ())
        if not found:
            raise self.fail("layer_types: no layer has attention")
        return found

    def window(self) -> int:
        """Keys that a row of a sliding layer sees, itself included; of a model that sees both ways, to each side."""
        if local := self.number(("local_attention",), default=0):  # counts both sides
            return local // 2 + (0 if self.causal() else 1)
        window = self.number(("sliding_window",))
        return window // 2 + 1 if self.data.get("use_bidirectional_attention") else window

    def patches(self) -> int:
        """Tokens of an image model: its patches, a class token, registers; 0 for other models."""
        if "patch_size" not in self.data or "image_size" not in self.data:
            return 0
        side = self.number(("image_size",)) // self.number(("patch_size",))
        extra = EXTRA_TOKENS.get(self.model_type, 1) + self.number(("num_register_tokens",), default=0, least=0)
        return side * side + extra
