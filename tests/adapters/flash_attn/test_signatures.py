"""Names, parameters, their order and their defaults are those of flash-attn 2.

The table is what its documentation says of version 2.8. FAOPS_FLASH_ATTN_CHECKOUT may name a checkout of
flash-attention: its own sources, read and not run, must then say the same.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "faops.adapters.flash_attn"
CHECKOUT = os.environ.get("FAOPS_FLASH_ATTN_CHECKOUT", "")
NO_DEFAULT = inspect.Parameter.empty

# What all calls end on, but for those of the cache.
OPTIONS = (
    "dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 alibi_slopes=None "
    "deterministic=False return_attn_probs=False"
)
PACKING = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
RAW = "dropout_p softmax_scale causal window_size_left window_size_right softcap alibi_slopes"
GIVEN = "dout q k v out softmax_lse dq dk dv"
CACHE = (
    "q k_cache v_cache k=None v=None rotary_cos=None rotary_sin=None cache_seqlens=None cache_batch_idx=None "
    "cache_leftpad=None block_table=None softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 "
    "rotary_interleaved=True alibi_slopes=None num_splits=0 return_softmax_lse=False"
)
VARLEN_FORWARD = (
    f"q k v {PACKING} dropout_p softmax_scale causal window_size_left=-1 window_size_right=-1 softcap=0.0 "
    "alibi_slopes=None return_softmax=False block_table=None leftpad_k=None seqused_k=None zero_tensors=False "
    "num_splits=0"
)
OFFSETS = "seqlen_offsets=0 cu_seqlens=None max_seqlen=None"
INTERFACE = {
    "flash_attn_func": f"q k v {OPTIONS}",
    "flash_attn_kvpacked_func": f"q kv {OPTIONS}",
    "flash_attn_qkvpacked_func": f"qkv {OPTIONS}",
    "flash_attn_varlen_func": f"q k v {PACKING} {OPTIONS} block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q kv {PACKING} {OPTIONS}",
    "flash_attn_varlen_qkvpacked_func": f"qkv cu_seqlens max_seqlen {OPTIONS}",
    "flash_attn_with_kvcache": CACHE,
}
PRIVATE = {
    "_flash_attn_forward": f"q k v {RAW} return_softmax",
    "_flash_attn_varlen_forward": VARLEN_FORWARD,
    "_flash_attn_backward": f"{GIVEN} {RAW} deterministic rng_state=None",
    "_flash_attn_varlen_backward": f"{GIVEN} {PACKING} {RAW} deterministic rng_state=None zero_tensors=False",
    "_get_block_size_n": "device head_dim is_dropout is_causal",
}
PADDING = {
    "index_first_axis": "",
    "index_put_first_axis": "",
    "index_first_axis_residual": "",
    "unpad_input": "hidden_states attention_mask unused_mask=None",
    "unpad_input_for_concatenated_sequences": "hidden_states attention_mask_in_length",
    "pad_input": "hidden_states indices batch seqlen",
}
ROTARY = {
    "rotate_half": "x interleaved=False",
    "apply_rotary_emb_torch": "x cos sin interleaved=False",
    "apply_rotary_emb": f"x cos sin interleaved=False inplace=False {OFFSETS}",
    "apply_rotary_emb_func": "",
    "apply_rotary_emb_qkv_": "qkv cos sin cos_k=None sin_k=None interleaved=False seqlen_offsets=0 num_heads_q=None",
    "apply_rotary_emb_kv_": "kv cos sin interleaved=False seqlen_offsets=0",
    "RotaryEmbedding.__init__": "self dim base=10000.0 interleaved=False scale_base=None device=None",
    "RotaryEmbedding.forward": "self qkv kv=None seqlen_offset=0 max_seqlen=None num_heads_q=None",
    "RotaryEmbedding._update_cos_sin_cache": "self seqlen device=None dtype=None",
    "RotaryEmbedding._compute_inv_freq": "self device=None",
}
TABLE = {
    "flash_attn_interface": {**INTERFACE, **PRIVATE},
    "bert_padding": PADDING,
    "layers.rotary": ROTARY,
    "ops.triton.rotary": {"apply_rotary": f"x cos sin {OFFSETS} interleaved=False inplace=False conjugate=False"},
}
ENTRIES = [(module, name, text) for module, entries in TABLE.items() for name, text in entries.items()]


def table_row(text: str) -> list[tuple[str, Any]]:
    pairs = (word.partition("=") for word in text.split())
    return [(name, ast.literal_eval(value) if equals else NO_DEFAULT) for name, equals, value in pairs]


@pytest.mark.parametrize(("module", "name", "text"), ENTRIES, ids=[f"{row[0]}.{row[1]}" for row in ENTRIES])
def test_signature(module: str, name: str, text: str) -> None:
    found: Any = importlib.import_module(f"{PACKAGE}.{module}")
    for part in name.split("."):
        found = getattr(found, part)
    if not text:  # known by its name alone
        assert callable(found)
        return
    parameters = inspect.signature(found).parameters.values()
    assert [(parameter.name, parameter.default) for parameter in parameters] == table_row(text)
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


def test_top_level_names() -> None:
    package = importlib.import_module(PACKAGE)
    interface = importlib.import_module(f"{PACKAGE}.flash_attn_interface")
    for name in INTERFACE:
        assert getattr(package, name) is getattr(interface, name)
        assert inspect.getdoc(getattr(package, name))
    assert package.__version__.startswith("2.")
    assert interface.USE_TRITON_ROCM is False


@pytest.mark.skipif(not CHECKOUT, reason="FAOPS_FLASH_ATTN_CHECKOUT names no checkout")
@pytest.mark.parametrize("module", TABLE)
def test_a_checkout_says_the_same(module: str) -> None:
    path = Path(CHECKOUT, "flash_attn", *module.split(".")).with_suffix(".py")
    theirs = dict(signatures(ast.parse(path.read_text(encoding="utf-8"))))
    for name, text in TABLE[module].items():
        if text:
            assert theirs[name] == table_row(text), name


def signatures(tree: ast.Module) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(name, parameters) of the functions of a module and of its classes' methods."""
    found = []
    for node in tree.body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in inside:
            if isinstance(function, ast.FunctionDef):
                found.append((prefix + function.name, _parameters(function.args)))
    return found


def _parameters(arguments: ast.arguments) -> list[tuple[str, Any]]:
    names = [argument.arg for argument in arguments.args]
    defaults = [ast.literal_eval(default) for default in arguments.defaults]
    return list(zip(names, [NO_DEFAULT] * (len(names) - len(defaults)) + defaults))
