"""What attention a model of transformers asks: it runs with an attention that writes down what it is called with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from faops.problem import AttentionProblem

NAME = "write_down"
TOKENS = 12
Visible = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True)
class Asked:
    """One kind of call: heads, head dims, and which key (column) each row sees."""

    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    softcap: bool
    sinks: bool
    visible: Visible


_asked: set[Asked] = set()


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    rows, keys = query.shape[2], key.shape[2]
    visible = torch.ones(rows, keys, dtype=torch.bool)
    if attention_mask is not None:
        assert attention_mask.dtype == torch.bool
        visible = attention_mask.expand(-1, -1, rows, keys)[0, 0]
    elif is_causal if is_causal is not None else getattr(module, "is_causal", True):
        visible = visible.tril()
    dims = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    _asked.add(Asked(*dims, bool(softcap), s_aux is not None, _rows(visible)))
    return query.new_zeros(query.shape[0], rows, query.shape[1], value.shape[3]), None


def _whole_mask(*given: Any, **named: Any) -> Tensor | None:
    """The mask even where it could be left out."""
    return sdpa_mask(*given, **{**named, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


transformers.AttentionInterface.register(NAME, _attend)
transformers.AttentionMaskInterface.register(NAME, _whole_mask)


def _rows(visible: Tensor) -> Visible:
    return tuple(tuple(row) for row in visible.tolist())


def asked_by_model(folder: Path) -> set[Asked]:
    """What the model whose config.json lies in ``folder`` asks when it reads TOKENS tokens, or one image."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModel.from_config(config, attn_implementation=NAME).eval()
    _asked.clear()
    with torch.no_grad():
        if hasattr(config, "image_size"):
            model(pixel_values=torch.zeros(1, 3, config.image_size, config.image_size))
        else:
            model(input_ids=torch.arange(1, TOKENS + 1)[None])
    return set(_asked)


def asked_by_problem(problem: AttentionProblem) -> Asked:
    """The same, of a problem."""
    rows, keys = problem.seqlen_q, problem.seqlen_k
    visible = torch.zeros(rows, keys, dtype=torch.bool)
    for row in range(rows):
        low, high = problem.band.keys_of_rows(row, row + 1, rows, keys)
        visible[row, low:high] = True
    dims = (problem.heads_q, problem.heads_kv, problem.head_dim, problem.head_dim_v)
    return Asked(*dims, problem.softcap, problem.sinks, _rows(visible))
