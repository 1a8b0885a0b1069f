"""Random calls of the KV-cache kernels, Triton's and others: features, drawn tensors, and what is to come out."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.triton_calls import Call, Place, Results, Trial, poison
from faops import reference
from faops.inputs import DecodeInputs
from faops.problem import Band
from tests.support import assert_accurate, random_mask

PAGE_SIZES = (1, 16, 100, 256)
FEATURES = (
    *(f"paged{size}" for size in PAGE_SIZES), "append", "append_more", "rotary", "rotary_half", "leftpad",
    "batch_index", "causal", "window", "softcap", "alibi", "alibi_batch", "bias", "mask", "sinks", "gqa", "mqa",
    "full_cache", "prefill", "splits", "value_dim", "scale", "heads_first",
)  # fmt: skip
EXCLUSIVE = (
    {"gqa", "mqa"}, {"alibi", "alibi_batch"}, {"append", "append_more"}, {"rotary", "rotary_half"},
    {*(f"paged{size}" for size in PAGE_SIZES), "batch_index", "heads_first"},
    {"full_cache", "append"}, {"full_cache", "append_more"}, {"full_cache", "rotary"}, {"full_cache", "rotary_half"},
)  # fmt: skip
BATCH = 3
SPARE = 3  # pages of nobody


def compatible(features: tuple[str, ...]) -> bool:
    return not any(len(group & set(features)) > 1 for group in EXCLUSIVE)


class DecodeCall(Call):
    """Results are (out, lse, k_cache, v_cache); the caches hold the new keys and values."""

    op = "decode"

    def __init__(self, trial: Trial, place: Place) -> None:
        torch.manual_seed(trial.seed)
        random.seed(trial.seed)
        self.dtype = trial.dtype
        self.tensors, self.options = draw(trial)
        super().__init__(_inputs(self.tensors, self.options, place.device), trial.config, place, trial.kernel)

    def set_lengths(self, lengths: Tensor) -> None:
        """The same call with other ``cache_seqlens`` (on the CPU), its caches as they were at first."""
        self.options["cache_seqlens"] = lengths
        self.inputs.cache_seqlens.copy_(lengths)
        for cache, first in zip((self.inputs.k_cache, self.inputs.v_cache), self.tensors[1:3]):
            cache.copy_(first)

    def run(self) -> None:
        super().run()
        self.results = (*self.results, self.inputs.k_cache, self.inputs.v_cache)

    def clear(self) -> None:
        poison(self.results[:2])

    def check(self, results: Results, context: str) -> None:
        options = {name: value for name, value in self.options.items() if name != "num_splits"}
        exact = reference.attention_with_kvcache(*self.tensors, **options)  # type: ignore[arg-type]
        plain = reference.attention_with_kvcache(*self.tensors, dtype=self.dtype, **options)  # type: ignore[arg-type]
        out, lse, *caches = (tensor.cpu() for tensor in results if tensor is not None)
        assert_accurate("out", out, exact[0], plain[0], context)
        assert_accurate("lse", lse, exact[1], plain[1], context)
        for name, cache, expected in zip(("k_cache", "v_cache"), caches, exact[2:]):
            assert torch.equal(cache, expected), f"{name} differs: {context}"


def draw(trial: Trial) -> tuple[list[Tensor | None], dict[str, Any]]:
    """q, k_cache, v_cache, k, v and the options of :func:`faops.attention_with_kvcache`, on the CPU.

    ``trial.shape`` has "capacity", which is rounded up to whole pages, and "head_dim".
    """
    features = trial.features
    dim = trial.shape["head_dim"]
    dim_v = dim // 2 + 8 if "value_dim" in features else dim
    heads, heads_kv = (8, 2) if "gqa" in features else (4, 1) if "mqa" in features else (4, 4)
    rows = random.randint(2, 20) if "prefill" in features else 1
    rotated = "rotary" in features or "rotary_half" in features
    new = random.randint(2, 20) if "append_more" in features else rows if rotated or "append" in features else 0
    page = next((int(name[5:]) for name in features if name.startswith("paged")), 0)
    pages = -(-trial.shape["capacity"] // page) if page else 0
    capacity = page * pages or trial.shape["capacity"]
    entries = BATCH + 2 if "batch_index" in features else BATCH

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape).to(trial.dtype)

    def cache(size: int) -> Tensor:
        first, tokens = (BATCH * pages + SPARE, page) if page else (entries, capacity)
        if "heads_first" in features:
            return normal(first, heads_kv, tokens, size).transpose(1, 2)
        return normal(first, tokens, heads_kv, size)

    # A windowed or causal call rotates its last row at cache_seqlens + rows - 1, which the tables must hold.
    most = capacity - max(new, rows)
    lengths = [capacity if "full_cache" in features else random.randint(1, most) for _ in range(BATCH)]
    options: dict[str, Any] = {"cache_seqlens": torch.tensor(lengths, dtype=torch.int32)}
    if page:
        order = torch.randperm(BATCH * pages + SPARE)[: BATCH * pages]
        options["block_table"] = order.view(BATCH, pages).int()
    if "batch_index" in features:
        options["cache_batch_idx"] = torch.randperm(entries)[:BATCH].int()
    if "leftpad" in features:
        options["cache_leftpad"] = torch.tensor([random.randint(0, length) for length in lengths], dtype=torch.int32)
    if rotated:
        angles = torch.rand(capacity, random.choice((dim // 4, dim // 2))) * 6
        options.update(rotary_cos=angles.cos().to(trial.dtype), rotary_sin=angles.sin().to(trial.dtype))
        options["rotary_interleaved"] = "rotary" in features
    pairs = tuple(random.choice((1, size)) for size in (BATCH, heads, rows, capacity))
    choices: dict[str, dict[str, Any]] = {
        "causal": {"causal": True},
        "window": {"window": (random.randint(0, capacity), random.choice((-1, 0, 4)))},
        "softcap": {"softcap": random.uniform(0.5, 3.0)},
        "alibi": {"alibi_slopes": torch.rand(heads) * 0.3},
        "alibi_batch": {"alibi_slopes": torch.rand(BATCH, heads) * 0.3},
        "bias": {"bias": normal(*pairs)},
        "mask": {"mask": random_mask(pairs)},
        "sinks": {"sinks": normal(heads) + 1},
        "splits": {"num_splits": random.randint(2, 9)},
        "scale": {"scale": random.uniform(0.02, 0.5)},
    }
    for name in features:
        options.update(choices.get(name, {}))
    k, v = (normal(BATCH, new, heads_kv, size) if new else None for size in (dim, dim_v))
    return [normal(BATCH, rows, heads, dim), cache(dim), cache(dim_v), k, v], options


def _inputs(tensors: list[Tensor | None], options: dict[str, Any], device: torch.device) -> DecodeInputs:
    """The call as a kernel's launch gets it, on ``device``; the caches are copies."""
    q, k_cache, v_cache, k, v = (None if tensor is None else tensor.to(device, copy=True) for tensor in tensors)
    assert q is not None and k_cache is not None and v_cache is not None
    there = {name: value.to(device) for name, value in options.items() if isinstance(value, Tensor)}
    band = Band.of(options.get("causal", False), options.get("window", (-1, -1)))
    return DecodeInputs(
        q=q, k_cache=k_cache, v_cache=v_cache, k=k, v=v,
        cache_seqlens=there["cache_seqlens"], cache_batch_idx=there.get("cache_batch_idx"),
        cache_leftpad=there.get("cache_leftpad"), block_table=there.get("block_table"),
        rotary_cos=there.get("rotary_cos"), rotary_sin=there.get("rotary_sin"),
        alibi_slopes=there.get("alibi_slopes"), bias=there.get("bias"), mask=there.get("mask"),
        sinks=there.get("sinks"), window_left=band.left, window_right=band.right,
        scale=options.get("scale", q.shape[-1] ** -0.5), softcap=options.get("softcap", 0.0),
        rotary_interleaved=options.get("rotary_interleaved", True), num_splits=options.get("num_splits", 0),
        need_lse=True, backend="",
    )  # fmt: skip
