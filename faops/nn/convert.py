"""State dicts of other modules as those of :class:`faops.nn.MultiheadAttention`, and back.

Each function takes the state dict of one module or of a whole model: every attention module in it, whatever its prefix,
is converted, and all other entries stay as they are. Joined parameters are copies, the others are the same tensors.

=========================  =========================================  ==========================================
here                       ``torch.nn.MultiheadAttention``            Llama and its kin in transformers
=========================  =========================================  ==========================================
``Wqkv.weight``            ``in_proj_weight``                         ``q_proj.weight``, ``k_proj``, ``v_proj``
``Wqkv.bias``              ``in_proj_bias``                           ``q_proj.bias``, ``k_proj``, ``v_proj``
``out_proj.weight, bias``  the same                                   ``o_proj.weight, bias``
``q_norm``, ``k_norm``     none                                       the same (Qwen 3)
=========================  =========================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from faops.errors import ArgumentError

State = Mapping[str, Tensor]
_UNKNOWN_TO_US = ("bias_k", "bias_v", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_SPLIT = ("q_proj", "k_proj", "v_proj")


def from_torch(state: State) -> dict[str, Tensor]:
    """From the names of ``torch.nn.MultiheadAttention``.

    Raises ArgumentError for one with ``add_bias_kv`` or with ``kdim`` or ``vdim`` of its own.
    """
    for name in state:
        if name.rpartition(".")[2] in _UNKNOWN_TO_US:
            raise ArgumentError("state", name, "a self-attention without add_bias_kv, kdim and vdim")
    return {_renamed(name, "in_proj_", "Wqkv."): tensor for name, tensor in state.items()}


def to_torch(state: State) -> dict[str, Tensor]:
    """To the names of ``torch.nn.MultiheadAttention``, which has as many key and value heads as query heads.

    Raises ArgumentError for grouped heads.
    """
    for name, tensor in state.items():
        if name.rpartition("Wqkv.")[1] and tensor.shape[0] != 3 * _out_features(state, name):
            raise ArgumentError(
                "state", f"{name} of {tensor.shape[0]} rows", "as many key and value heads as query heads"
            )
    return {_renamed(name, "Wqkv.", "in_proj_"): tensor for name, tensor in state.items()}


def from_llama(state: State) -> dict[str, Tensor]:
    """From the names of Llama's attention in transformers: separate projections. Raises ArgumentError if one lacks."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, kind, last = _parted(name)
        if kind == "q_proj":
            parts = [f"{prefix}{part}.{last}" for part in _SPLIT]
            if missing := [part for part in parts if part not in state]:
                raise ArgumentError("state", f"no {missing[0]}", f"one beside {name}")
            found[f"{prefix}Wqkv.{last}"] = torch.cat([state[part] for part in parts])
        elif kind not in _SPLIT:
            found[f"{prefix}out_proj.{last}" if kind == "o_proj" else name] = tensor
    return found


def to_llama(state: State, num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """To the names of Llama's attention in transformers. Raises ArgumentError if the heads do not divide the rows."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, kind, last = _parted(name)
        if kind == "Wqkv":
            head_dim, rest = divmod(tensor.shape[0], num_heads + 2 * num_kv_heads)
            if rest:
                expected = f"a multiple of num_heads + 2 num_kv_heads = {num_heads + 2 * num_kv_heads} rows"
                raise ArgumentError("state", f"{name} of {tensor.shape[0]} rows", expected)
            rows = [heads * head_dim for heads in (num_heads, num_kv_heads, num_kv_heads)]
            for part, block in zip(_SPLIT, torch.split(tensor, rows)):
                found[f"{prefix}{part}.{last}"] = block.clone()
        else:
            found[f"{prefix}o_proj.{last}" if kind == "out_proj" else name] = tensor
    return found


def _parted(name: str) -> tuple[str, str, str]:
    """(prefix with its dot, module, parameter): ``layers.0.attn.``, ``q_proj``, ``weight``."""
    path, _, last = name.rpartition(".")
    prefix, dot, kind = path.rpartition(".")
    return prefix + dot, kind, last


def _renamed(name: str, old: str, new: str) -> str:
    head, found, last = name.rpartition(old)
    return head + new + last if found and (not head or head.endswith(".")) else name


def _out_features(state: State, name: str) -> int:
    """Columns of the output projection beside a Wqkv parameter: query heads × head dim."""
    return state[name.rpartition("Wqkv.")[0] + "out_proj.weight"].shape[1]
