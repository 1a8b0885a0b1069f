"""The KV-cache kernels that the gates look at: the default configs over dense and paged caches, append and combine."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from faops.backends.cuda_raw.decode import RawDecode, Step, launches
from faops.backends.cuda_raw.decode_tiles import DecodeFamily
from faops.backends.cuda_raw.gates.cases import device_of, dtypes
from faops.backends.cuda_raw.sample import family_of
from faops.backends.cuda_raw.sm75_decode import Sm75Decode
from faops.backends.cuda_raw.sm80_decode import Sm80Decode
from faops.backends.cuda_raw.targets import Target
from faops.backends.cuda_raw.tiles import SM75
from faops.inputs import DecodeInputs
from faops.registry import Config

PAGES = {"dense": 0, "page64": 64, "page16": 16, "page1": 1}
ROWS = (1, 64)  # query tokens: decoding, and a chunk of a prompt
HEADS, HEADS_KV = 8, 2
BATCH = 1
KEYS = 256  # in the cache before the call, which appends to them
SPLITS = 2


@dataclass(frozen=True)
class DecodeCase:
    """The launches of one call for one target. ``feature`` is one of PAGES, ``rows`` the query tokens of a sequence."""

    target: Target
    config: Config
    head_dim: int
    dtype: torch.dtype
    feature: str = "dense"
    rows: int = 1

    @property
    def family(self) -> DecodeFamily:
        return decode_kernel(self.target).family

    @property
    def config_text(self) -> str:
        """The config in short: rows x keys, warps, those with keys of their own, stages."""
        names = ("tile_m", "tile_n", "warps", "key_warps", "stages")
        return "{}x{} w{} k{} s{}".format(*(self.config[name] for name in names))

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.target} d{self.head_dim} {dtype} decode {self.feature} m{self.rows} {self.config_text}"

    def launches(self) -> list[Step]:
        """What a call with random tensors launches: append, attention, combine."""
        inputs = make_call(self.head_dim, self.dtype, self.feature, self.rows)
        return launches(inputs, self.config, device_of(self.target))[-1]


@functools.lru_cache(maxsize=64)
def _sample(head_dim: int, dtype: torch.dtype, feature: str, rows: int) -> DecodeInputs:
    return make_call(head_dim, dtype, feature, rows)


def make_call(head_dim: int, dtype: torch.dtype, feature: str, rows: int) -> DecodeInputs:
    """A causal call over caches of KEYS keys, to which it appends ``rows`` new ones, rotated by halves."""
    page = PAGES[feature]
    capacity = KEYS + 64
    leading = (BATCH * capacity // page, page) if page else (BATCH, capacity)
    table = torch.randperm(leading[0]).view(BATCH, -1).int() if page else None
    k_cache, v_cache = (torch.randn(*leading, HEADS_KV, head_dim).to(dtype) for _ in range(2))
    k, v = (torch.randn(BATCH, rows, HEADS_KV, head_dim).to(dtype) for _ in range(2))
    angles = torch.randn(capacity, head_dim // 2)
    return DecodeInputs(
        q=torch.randn(BATCH, rows, HEADS, head_dim).to(dtype), k_cache=k_cache, v_cache=v_cache, k=k, v=v,
        cache_seqlens=torch.full((BATCH,), KEYS - rows, dtype=torch.int32), cache_batch_idx=None, cache_leftpad=None,
        block_table=table, rotary_cos=angles.cos().to(dtype), rotary_sin=angles.sin().to(dtype), alibi_slopes=None,
        bias=None, mask=None, sinks=None, window_left=-1, window_right=0, scale=head_dim**-0.5, softcap=0.0,
        rotary_interleaved=False, num_splits=SPLITS, need_lse=True, backend="",
    )  # fmt: skip


def decode_kernel(target: Target) -> RawDecode:
    return Sm75Decode() if family_of(target) is SM75 else Sm80Decode()


def decode_defaults(
    targets: Sequence[Target], head_dims: Sequence[int], features: Sequence[str]
) -> Iterator[DecodeCase]:
    """The default configs over every cache."""
    for target in targets:
        for head_dim in head_dims:
            for dtype in dtypes(target):
                for feature in features:
                    for rows in ROWS:
                        problem = _sample(head_dim, dtype, feature, rows).problem()
                        config = decode_kernel(target).default_config(problem, device_of(target))
                        yield DecodeCase(target, config, head_dim, dtype, feature, rows)


def decode_everything(targets: Sequence[Target], head_dims: Sequence[int]) -> Iterator[DecodeCase]:
    """Every cache with the default configs, and every config of the tuning space over a dense and a paged cache."""
    seen = set()
    for case in decode_defaults(targets, head_dims, tuple(PAGES)):
        seen.add(case)
        yield case
    for target in targets:
        for head_dim in head_dims:
            for feature in ("dense", "page16"):
                for rows in ROWS:
                    problem = _sample(head_dim, torch.float16, feature, rows).problem()
                    for config in decode_kernel(target).configs(problem, device_of(target)):
                        if (case := DecodeCase(target, config, head_dim, torch.float16, feature, rows)) not in seen:
                            yield case
