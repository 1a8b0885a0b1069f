"""Random KV-cache calls of every kind, with NaN wherever a kernel has no business to look; alike for all backends."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import faops
from faops import reference
from tests.support import assert_accurate, random_mask

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

FEATURES = (
    "append", "append_more", "rotary", "rotary_half", "leftpad", "batch_idx", "paged", "full_cache", "causal", "window",
    "window_left", "window_right", "softcap", "alibi", "alibi_batch", "bias", "mask", "sinks", "splits", "bhsd",
    "value_dim", "scale", "one_cache", "strided",
)  # fmt: skip
EXCLUSIVE = (
    {"alibi", "alibi_batch"}, {"paged", "batch_idx"}, {"append", "append_more", "full_cache"},
    {"rotary", "rotary_half"}, {"causal", "window", "window_left", "window_right"}, {"bhsd", "one_cache", "strided"},
    {"value_dim", "one_cache"},
)  # fmt: skip


def compatible(features: tuple[str, ...]) -> bool:
    return not any(len(group & set(features)) > 1 for group in EXCLUSIVE)


@dataclass
class Call:
    """One call: its tensors (q, k_cache, v_cache, k, v) and options, and a text that repeats its shape."""

    tensors: list[Tensor | None]
    options: dict[str, Any]
    dtype: torch.dtype
    text: str


def make_call(
    *features: str, dtype: torch.dtype | None = None, M: int = 1, keys: int = 50, heads_kv: int = 2, group: int = 2,
    page: int = 0, batch: int = 2, dim: int = 20, dim_v: int = 20,
) -> Call:  # fmt: skip
    """A random call with these features. The longest sequence has ``keys`` keys, new ones among them.

    Caches hold NaN behind the length, in the left padding and in pages and rows that belong to nobody.
    """
    dtype = dtype or random.choice(DTYPES)
    heads = heads_kv * group
    dim_v = 24 if "value_dim" in features else dim_v
    page = page or (random.choice((3, 8, 16)) if "paged" in features else 0)
    new = min(keys, M if "append" in features else random.randint(1, 9) if "append_more" in features else 0)
    pages = -(-(keys + random.randint(0, 9)) // page) if page else 0
    capacity = pages * page or keys + random.randint(0, 9)
    if "full_cache" in features:
        lengths = [capacity] * batch
    else:
        lengths = [keys - new, 0] + [random.randint(0, keys - new) for _ in range(batch - 2)]
        lengths = random.sample(lengths[:batch], batch)
    pads = [random.randint(0, length + new) for length in lengths] if "leftpad" in features else [0] * batch

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    entries = batch + 2 if "batch_idx" in features else batch
    own = random.sample(range(entries), batch) if "batch_idx" in features else list(range(batch))
    table = torch.randperm(batch * pages + 2)[: batch * pages].view(batch, pages).int()
    leading = (batch * pages + 2, page) if page else (entries, capacity)
    if "one_cache" in features:  # K and V in one tensor, heads first
        both = torch.full((leading[0], 2, heads_kv, leading[1], dim), float("nan"), dtype=dtype)
        k_cache, v_cache = both[:, 0].transpose(1, 2), both[:, 1].transpose(1, 2)
    else:
        k_cache, v_cache = (
            torch.full((*leading, heads_kv, size), float("nan"), dtype=dtype) for size in (dim, dim_v)
        )  # fmt: skip
    for b in range(batch):
        for place in range(pads[b], lengths[b]):
            at = (int(table[b, place // page]), place % page) if page else (own[b], place)
            k_cache[at], v_cache[at] = tensor(heads_kv, dim), tensor(heads_kv, dim_v)

    options: dict[str, Any] = {}
    if "full_cache" not in features:
        options["cache_seqlens"] = torch.tensor(lengths, dtype=torch.int32)
    if page:
        options["block_table"] = table
    if "batch_idx" in features:
        options["cache_batch_idx"] = torch.tensor(own, dtype=torch.int32)
    if "leftpad" in features:
        options["cache_leftpad"] = torch.tensor(pads, dtype=torch.int32)
    if "rotary" in features or "rotary_half" in features:
        angles = torch.rand(capacity + M, random.choice((1, 3, dim // 2))) * 6
        options.update(rotary_cos=angles.cos().to(dtype), rotary_sin=angles.sin().to(dtype))
        options["rotary_interleaved"] = "rotary" in features
    pairs = tuple(random.choice((1, size)) for size in (batch, heads, M, capacity))
    choices: dict[str, dict[str, Any]] = {
        "causal": {"causal": True},
        "window": {"window": (random.randint(0, keys), random.randint(0, M))},
        "window_left": {"window": (random.randint(0, keys // 2), -1)},
        "window_right": {"window": (-1, random.randint(0, M))},
        "softcap": {"softcap": random.uniform(0.5, 3.0)},
        "alibi": {"alibi_slopes": torch.rand(heads) * 0.3},
        "alibi_batch": {"alibi_slopes": torch.rand(batch, heads) * 0.3},
        "bias": {"bias": tensor(*pairs)},
        "mask": {"mask": random_mask(pairs)},
        "sinks": {"sinks": tensor(heads) + 1},
        "splits": {"num_splits": random.randint(2, 5)},
        "scale": {"scale": random.uniform(0.05, 0.5)},
        "bhsd": {"layout": "bhsd"},
    }
    for name in features:
        options.update(choices.get(name, {}))
    k, v = (tensor(batch, new, heads_kv, size) if new else None for size in (dim, dim_v))
    tensors = [tensor(batch, M, heads, dim), k_cache, v_cache, k, v]
    if "strided" in features:
        tensors = [None if t is None else _inside_wider(t) for t in tensors]
    if "bhsd" in features:
        tensors = [None if t is None else t.transpose(1, 2).contiguous() for t in tensors]
    scalars = {name: value for name, value in options.items() if not isinstance(value, Tensor)}
    text = f"{features} {dtype} M {M} lengths {lengths} new {new} pads {pads} heads {heads}/{heads_kv} "
    text += f"capacity {capacity} page {page} dims {dim}/{dim_v} {scalars}"
    return Call(tensors, options, dtype, text)


def _inside_wider(tensor: Tensor) -> Tensor:
    """The same values as part of a tensor with wider rows of NaN, starting at an odd place."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 8), float("nan"), dtype=tensor.dtype)
    inner = wide[..., 1 : 1 + tensor.shape[-1]]
    return inner.copy_(tensor)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def check(call: Call, backend: str, note: str = "") -> None:
    """Hold ``call`` to the accuracy rule, and the caches to what they must hold bit for bit."""
    options = {name: value for name, value in call.options.items() if name != "num_splits"}
    exact, exact_lse, k_after, v_after = reference.attention_with_kvcache(*call.tensors, **options)  # type: ignore[arg-type]
    plain, plain_lse, _, _ = reference.attention_with_kvcache(*call.tensors, dtype=call.dtype, **options)  # type: ignore[arg-type]
    out, lse = faops.attention_with_kvcache(*call.tensors, **call.options, return_lse=True, backend=backend)
    text = f"{call.text} {note}"
    assert out.dtype == call.dtype
    assert_accurate("out", out, exact, plain, text)
    assert_accurate("lse", lse, exact_lse, plain_lse, text)
    for name, cache, after in (("k_cache", call.tensors[1], k_after), ("v_cache", call.tensors[2], v_after)):
        assert cache is not None
        assert torch.equal(bits(cache), bits(after)), f"{name} differs: {text}"
