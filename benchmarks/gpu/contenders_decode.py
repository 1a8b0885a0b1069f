"""What is compared in decoding: one new token a sequence over a cache of a gigabyte or more, bound by its bandwidth."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

import faops
from benchmarks.gpu import contenders
from benchmarks.gpu.racing import Contender, Work
from benchmarks.gpu.triton_calls import BACKEND, kernel_of
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.problem import DTYPES, AttentionProblem
from faops.registry import Config

HEADS, HEADS_KV, HEAD_DIM = 32, 8, 128
PAGE_SIZES = (16, 1, 64, 256)
COPY = "copy"  # the yardstick: as many bytes copied as the cache holds


@dataclass(frozen=True)
class Cache:
    """Full caches of ``batch`` sequences of ``tokens`` tokens, from which one query row each reads everything."""

    batch: int
    tokens: int
    dtype: str = "bfloat16"

    @property
    def bytes(self) -> int:
        """Of keys and values together, which a call reads once."""
        return 2 * self.batch * self.tokens * HEADS_KV * HEAD_DIM * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"decode {self.batch} x {self.tokens} h{HEADS}/{HEADS_KV} d{HEAD_DIM} {self.dtype}"

    def as_dict(self) -> dict[str, object]:
        return {"batch": self.batch, "tokens": self.tokens, "dtype": self.dtype, "heads": HEADS, "heads_kv": HEADS_KV,
                "head_dim": HEAD_DIM, "bytes": self.bytes}  # fmt: skip

    def problem(self, page_size: int = 0) -> AttentionProblem:
        return AttentionProblem(
            "decode", self.dtype, batch=self.batch, seqlen_k=self.tokens, heads_q=HEADS, heads_kv=HEADS_KV,
            head_dim=HEAD_DIM, head_dim_v=HEAD_DIM, layout="paged" if page_size else "dense", page_size=page_size,
        )  # fmt: skip

    def draw(self, device: torch.device | str = "") -> tuple[Tensor, Tensor, Tensor]:
        """q (B, 1, H, D) and the dense caches (B, tokens, Hk, D)."""

        def normal(tokens: int, heads: int) -> Tensor:
            size = (self.batch, tokens, heads, HEAD_DIM)
            return torch.randn(size, device=device or contenders.DEVICE, dtype=DTYPES[self.dtype])

        return normal(1, HEADS), normal(self.tokens, HEADS_KV), normal(self.tokens, HEADS_KV)


def all_decode(cache: Cache) -> dict[str, Contender]:
    """All that could decode; each is made from q and the dense caches, from which it takes its pages.

    PyTorch's kernels get the dense cache, so that gathering the pages costs them nothing.
    """
    found: dict[str, Contender] = {}
    if kernel_of("decode").check(cache.problem(), detect(contenders.DEVICE)):
        found["triton dense"] = triton_decode(cache, 0)
        for page_size in PAGE_SIZES:
            found[f"triton paged {page_size}"] = triton_decode(cache, page_size)
        found["faops triton"] = contenders.work_of(functools.partial(faops.attention_with_kvcache, backend=BACKEND))
    found["faops"] = contenders.work_of(faops.attention_with_kvcache)
    shape = contenders.Shape(cache.tokens, HEAD_DIM, False, cache.dtype)
    return {**found, **{name: contenders.work_of(call) for name, call in contenders.peers(shape).items()}}


def is_ours(name: str) -> bool:
    return name.startswith(("triton", "faops"))


def triton_decode(cache: Cache, page_size: int, config: Config | None = None) -> Contender:
    """The Triton kernels with ``config`` or the default one, past the dispatcher."""
    kernel = kernel_of("decode")
    chosen = config or kernel.default_config(cache.problem(page_size), detect(contenders.DEVICE))

    def make(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Work:
        inputs = decode_inputs(cache, page_size, q, k_cache, v_cache)
        return lambda: kernel.launch(inputs, chosen)[0]

    return make


def decode_inputs(cache: Cache, page_size: int, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> DecodeInputs:
    """The call as the kernel's launch gets it; pages lie in random order, or the cache is dense for a size of 0."""
    table = None
    if page_size:
        pages = cache.batch * cache.tokens // page_size
        places = torch.randperm(pages, device=q.device)
        table = places.view(cache.batch, -1).int()
        k_cache, v_cache = (_scattered(dense, places, page_size) for dense in (k_cache, v_cache))
    lengths = torch.full((cache.batch,), cache.tokens, dtype=torch.int32, device=q.device)
    return DecodeInputs(
        q, k_cache, v_cache, None, None, lengths, None, None, table, None, None, None, None, None, None, -1, -1,
        HEAD_DIM**-0.5, 0.0, True, 0, False, "",
    )  # fmt: skip


def _scattered(dense: Tensor, places: Tensor, page_size: int) -> Tensor:
    """The pages of a dense cache, page i at ``places[i]``."""
    pages = dense.reshape(-1, page_size, *dense.shape[2:])
    return torch.empty_like(pages).index_copy_(0, places, pages)


def copying(cache: Cache) -> Work:
    """Copies as many bytes as the cache holds."""
    source = torch.ones(cache.bytes, dtype=torch.uint8, device=contenders.DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
