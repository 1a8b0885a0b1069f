"""What is compared in decoding: one new token a sequence over a cache of a gigabyte or more, bound by its bandwidth."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

import faops
from benchmarks.gpu import contenders
from benchmarks.gpu.racing import Contender, Work
from benchmarks.gpu.raw_decode import own_kernel
from benchmarks.gpu.triton_calls import kernel_of
from faops.device import detect
from faops.inputs import DecodeInputs
from faops.problem import DTYPES, AttentionProblem
from faops.registry import Config, Kernel

HEADS, HEADS_KV, HEAD_DIM = 32, 8, 128
PAGE_SIZES = (16, 1, 64, 256)
FLASHINFER_PAGES = (16, 1)
WORKSPACE_BYTES = 128 * 2**20  # that FlashInfer asks for
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


class Calls:
    """Calls on one dense cache and on its pages, which all contenders with the same page size share."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._made: dict[int, tuple[Tensor, DecodeInputs]] = {}  # by page size, with the dense keys they are made of

    def inputs(self, page_size: int, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> DecodeInputs:
        made = self._made.get(page_size)
        if made is None or made[0] is not k_cache:
            made = self._made[page_size] = (k_cache, decode_inputs(self.cache, page_size, q, k_cache, v_cache))
        return made[1]

    def launching(self, kernel: Kernel, page_size: int, config: Config | None = None) -> Contender:
        """``kernel`` with ``config`` or the default one, past the dispatcher."""
        chosen = config or kernel.default_config(self.cache.problem(page_size), detect(contenders.DEVICE))

        def make(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Work:
            inputs = self.inputs(page_size, q, k_cache, v_cache)
            return lambda: kernel.launch(inputs, chosen)[0]

        return make

    def flashinfer(self, page_size: int) -> Contender:
        """FlashInfer's decode on the same pages, planned beforehand."""

        def make(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Work:
            module = importlib.import_module("flashinfer")
            inputs = self.inputs(page_size, q, k_cache, v_cache)
            assert inputs.block_table is not None
            batch, pages = inputs.block_table.shape
            workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
            wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            ends = torch.arange(0, (batch + 1) * pages, pages, dtype=torch.int32, device=q.device)
            filled = torch.full((batch,), page_size, dtype=torch.int32, device=q.device)
            wrapper.plan(ends, inputs.block_table.flatten(), filled, HEADS, HEADS_KV, HEAD_DIM, page_size,
                         q_data_type=q.dtype, kv_data_type=q.dtype)  # fmt: skip
            both = (inputs.k_cache, inputs.v_cache)
            return lambda: wrapper.run(q[:, 0], both)[:, None]

        return make


def all_decode(cache: Cache) -> dict[str, Contender]:
    """All that could decode; each is made from q and the dense caches, from which it takes its pages.

    PyTorch's kernels get the dense cache, so that gathering the pages costs them nothing.
    """
    found: dict[str, Contender] = {}
    profile, calls = detect(contenders.DEVICE), Calls(cache)
    for name, kernel in (("raw", own_kernel(profile)), ("triton", kernel_of("decode"))):
        if kernel.check(cache.problem(), profile):
            found[f"{name} dense"] = calls.launching(kernel, 0)
            for page_size in PAGE_SIZES:
                found[f"{name} paged {page_size}"] = calls.launching(kernel, page_size)
            call = functools.partial(faops.attention_with_kvcache, backend=kernel.id)
            found[f"faops {name}"] = contenders.work_of(call)
    found["faops"] = contenders.work_of(faops.attention_with_kvcache)
    shape = contenders.Shape(cache.tokens, HEAD_DIM, False, cache.dtype)
    found |= {name: contenders.work_of(call) for name, call in contenders.peers(shape).items()}
    if importlib.util.find_spec("flashinfer") is not None:
        found |= {f"flashinfer paged {size}": calls.flashinfer(size) for size in FLASHINFER_PAGES}
    return found


def is_ours(name: str) -> bool:
    return name.startswith(("raw", "triton", "faops"))


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
