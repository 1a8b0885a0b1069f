"""What the host does for the Triton KV-cache kernels: launches, splits, configs; and what keeps the caches whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import faops
from faops.backends.triton import decode, decode_space, decode_tiles, launch
from faops.backends.triton.decode import TritonDecode
from faops.backends.triton.launch import Launch, Tensors
from faops.device import known
from faops.inputs import DecodeInputs
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Rejected
from faops.splits import MAX_SPLITS
from tests.kvcache import bits, make_call
from tests.triton.kvcache import TILES, configured
from tests.triton.support import BACKEND

H100 = known("h100")
PROBLEM = AttentionProblem(
    op="decode", batch=4, seqlen_q=1, seqlen_k=8192, heads_q=32, heads_kv=8, head_dim=128, head_dim_v=128
)


def make_inputs(q: Tensor, k_cache: Tensor, v_cache: Tensor, **more: object) -> DecodeInputs:
    plain = dict.fromkeys((
        "k", "v", "cache_seqlens", "cache_batch_idx", "cache_leftpad", "block_table", "rotary_cos", "rotary_sin",
        "alibi_slopes", "bias", "mask", "sinks",
    ))  # fmt: skip
    numbers = {
        "window_left": -1, "window_right": -1, "scale": 0.2, "softcap": 0.0, "rotary_interleaved": True,
        "num_splits": 0, "need_lse": True, "backend": "",
    }  # fmt: skip
    return DecodeInputs(q, k_cache, v_cache, **{**plain, **numbers, **more})  # type: ignore[arg-type]


def test_no_value_is_read_on_the_host() -> None:
    """Tensors on the device "meta" have no values, and a call is planned and described all the same."""

    def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = make_inputs(
        meta(2, 1, 8, 64), meta(9, 16, 2, 64), meta(9, 16, 2, 64), k=meta(2, 1, 2, 64), v=meta(2, 1, 2, 64),
        cache_seqlens=meta(2, dtype=torch.int32), cache_leftpad=meta(2, dtype=torch.int32),
        block_table=meta(2, 4, dtype=torch.int32), rotary_cos=meta(64, 32), rotary_sin=meta(64, 32),
        alibi_slopes=meta(8, dtype=torch.float32), bias=meta(1, 1, 1, 64),
        mask=meta(2, 1, 1, 64, dtype=torch.bool), sinks=meta(8), num_splits=3,
    )  # fmt: skip
    made = decode.launches(inputs, TILES[0], H100)
    assert [one.kernel for one, _ in made] == ["append.append", "decode.attention_decode", "combine.combine"]
    for one, tensors in made:
        names = one.function().arg_names
        assert names[len(tensors) :] == [name for name in names if name in {**one.numbers, **one.constants}]


def test_repeated_call_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make_call("append", "splits", dtype=torch.float16)
    known_keys: dict[Hashable, Launch] = {}
    built: list[Launch] = []

    def pretend(key: Hashable, tensors: Tensors, build: Callable[[], Launch]) -> None:
        if key not in known_keys:
            known_keys[key] = build()
            built.append(known_keys[key])

    monkeypatch.setattr(launch, "launch", pretend)

    def run(**changes: object) -> int:
        built.clear()
        faops.attention_with_kvcache(*call.tensors, **{**call.options, **changes}, backend=BACKEND)  # type: ignore[arg-type]
        return len(built)

    assert run() == 3
    assert run() == 0
    assert run(cache_seqlens=call.options["cache_seqlens"] // 2) == 0, "lengths are no part of a launch"
    changes = ({"scale": 0.3}, {"num_splits": 6}, {"causal": True}, {"window": (5, -1)}, {"return_lse": True})
    for change in (*changes, {"cache_seqlens": None, "cache_batch_idx": torch.tensor([1, 0], dtype=torch.int32)}):
        if "cache_seqlens" in change:
            call.tensors[3] = call.tensors[4] = None
            assert run(**change) == 2
        else:
            assert run(**change) == 3, f"{change} changes what is launched"
            assert run() == 0
        assert run(**change) == 0


def test_sliced_and_transposed_block_tables() -> None:
    """Serving code keeps one wide table and hands out its first columns; a transposed one is copied."""
    call = make_call("append", page=3, keys=30, dtype=torch.float16)
    expected = faops.attention_with_kvcache(*call.tensors, **call.options, backend="torch")  # type: ignore[arg-type]
    table = call.options["block_table"]
    wide = torch.full((2, 40), 2**30, dtype=torch.int32)
    wide[:, : table.shape[1]] = table
    for other in (wide[:, : table.shape[1]], table.t().contiguous().t()):
        assert not other.is_contiguous()
        call.options["block_table"] = other
        result = faops.attention_with_kvcache(*call.tensors, **call.options, backend=BACKEND)  # type: ignore[arg-type]
        torch.testing.assert_close(result, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("page", [0, 4])
def test_what_does_not_fit_is_dropped(page: int) -> None:
    """On a GPU nobody reads the lengths: those beyond the cache must not let a sequence write into another's."""
    leading = (6, page) if page else (2, 12)
    k_cache, v_cache = torch.randn(*leading, 1, 16), torch.randn(*leading, 1, 16)
    table = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32) if page else None
    q, k, v = torch.randn(2, 1, 1, 16), torch.randn(2, 3, 1, 16), torch.randn(2, 3, 1, 16)
    expected_k, expected_v = k_cache.clone(), v_cache.clone()
    for cache, new in ((expected_k.view(24, 1, 16), k), (expected_v.view(24, 1, 16), v)):
        cache[10:12], cache[17:20] = new[0, :2], new[1]
    lengths = torch.tensor([10, 5], dtype=torch.int32)
    inputs = make_inputs(q, k_cache, v_cache, k=k, v=v, cache_seqlens=lengths, block_table=table)
    out, _ = TritonDecode().launch(inputs, TILES[0])
    assert torch.equal(k_cache, expected_k)
    assert torch.equal(v_cache, expected_v)
    whole = expected_k.view(24, 1, 16)[None, :12], expected_v.view(24, 1, 16)[None, :12]
    torch.testing.assert_close(out[:1], faops.attention(q[:1], *whole, scale=0.2))


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("far", ["pages", "rows"])
def test_offsets_beyond_32_bits(far: str, tile: Config) -> None:
    """Pages, or the rows of one, that lie more than 2^31 elements apart; memory that nobody touches costs nothing."""
    pages, strides = (3, (2**30, 16, 16, 1)) if far == "pages" else (1, (0, 2**27, 16, 1))
    try:
        storage = torch.empty(20 * 2**27 + 2**10, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("NOT TESTED, offsets beyond 32 bits: no room for 5 GiB of addresses")
    cache = storage.as_strided((pages, 21, 1, 16), strides)
    near = torch.randn(pages, 21, 1, 16).half()
    cache.copy_(near)
    q, k, v = (torch.randn(pages, 1, 1, 16).half() for _ in range(3))
    more = {"k": k, "v": v, "cache_seqlens": torch.full((pages,), 20, dtype=torch.int32)}
    results = [TritonDecode().launch(make_inputs(q, one, one, **more), tile)[0] for one in (cache, near)]
    assert torch.equal(*results)
    assert torch.equal(cache, near)


@pytest.mark.parametrize(("batch", "M"), [(0, 1), (2, 0)])
def test_empty_batch_and_no_rows(batch: int, M: int) -> None:
    """Without a query row the new keys are written all the same."""
    q, cache = torch.randn(batch, M, 4, 8), torch.zeros(batch, 10, 2, 8)
    k, v = torch.randn(batch, 3, 2, 8), torch.randn(batch, 3, 2, 8)
    values = cache.clone()
    out, lse = faops.attention_with_kvcache(q, cache, values, k, v, cache_seqlens=4, return_lse=True, backend=BACKEND)
    assert out.shape == (batch, M, 4, 8)
    assert lse.shape == (batch, 4, M)
    assert torch.equal(cache[:, 4:7], k)
    assert torch.equal(values[:, 4:7], v)


def test_decoding_step_by_step_equals_one_causal_call() -> None:
    n, chunks = 12, [1, 5, 6]
    q, k, v = torch.randn(2, n, 4, 16), torch.randn(2, n, 2, 16), torch.randn(2, n, 2, 16)
    k_cache, v_cache = torch.full((2, n, 2, 16), float("nan")), torch.full((2, n, 2, 16), float("nan"))
    rows, at = [], 0
    for size in chunks:
        part = slice(at, at + size)
        new = (q[:, part], k_cache, v_cache, k[:, part], v[:, part])
        rows.append(faops.attention_with_kvcache(*new, cache_seqlens=at, causal=True, backend=BACKEND))
        at += size
    torch.testing.assert_close(torch.cat(rows, 1), faops.attention(q, k, v, causal=True))
    assert torch.equal(bits(k_cache), bits(k))


# ---------------------------------------------------------------------------------------------- splits and configs


def splits(problem: AttentionProblem = PROBLEM, **changes: object) -> int:
    problem = replace(problem, **changes)  # type: ignore[arg-type]
    return decode_tiles.choose_splits(problem, decode_space.decode_default(problem, H100), H100)


def test_splits_fill_the_device_and_no_more() -> None:
    assert splits(batch=64) == 1, "512 tiles keep 132 multiprocessors busy unsplit"
    assert splits(seqlen_q=4096) == 1
    few = splits(batch=1)
    assert 132 <= 8 * few <= 4 * 132
    assert splits(batch=1, seqlen_k=64) == 1, "one block of keys cannot be split"
    assert splits(batch=1, heads_q=1, heads_kv=1, seqlen_k=2**20) == MAX_SPLITS
    assert splits(batch=1, band=Band(100, 0)) < few, "a window leaves few blocks"


def test_asked_for_splits_win_up_to_a_limit() -> None:
    q, cache = torch.randn(1, 1, 1, 16), torch.randn(1, 300, 1, 16)
    for asked, of_config, got in ((0, 0, 1), (3, 0, 3), (3, 5, 3), (0, 5, 5), (1000, 0, MAX_SPLITS)):
        config = decode_space.make_config(16, 512, 4, 1, splits=of_config)
        made = decode.launches(make_inputs(q, cache, cache, num_splits=asked), config, H100)
        assert made[0][0].numbers["splits"] == got
        assert len(made) == (1 if got == 1 else 2)


@pytest.mark.parametrize("device", ["a100", "3090", "4090", "h100", "b200", "5090"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 160, 256])
def test_configs_fit_the_device(head_dim: int, dtype: str, device: str) -> None:
    profile = known(device)
    for rows, page, bias in ((1, 0, ""), (4, 16, ""), (1, 0, "b..n"), (512, 0, "")):
        layout = "paged" if page else "dense"
        shape = {"head_dim": head_dim, "head_dim_v": head_dim, "dtype": dtype, "layout": layout, "page_size": page}
        problem = replace(PROBLEM, seqlen_q=rows, bias=bias, **shape)  # type: ignore[arg-type]
        kernel = TritonDecode()
        configs = kernel.configs(problem, profile)
        assert kernel.default_config(problem, profile) in configs
        assert len(set(configs)) == len(configs) > 3
        for config in configs:
            assert decode_tiles.shared_bytes(config, problem, profile) <= profile.limits.shared_per_block


def test_one_config_where_it_is_interpreted() -> None:
    cpu = known("cpu")
    assert TritonDecode().configs(PROBLEM, cpu) == [TritonDecode().default_config(PROBLEM, cpu)]


def test_reasons() -> None:
    decision = TritonDecode().check(replace(PROBLEM, dtype="float64", head_dim=512, fp8_descale=True), H100)
    assert isinstance(decision, Rejected)
    text = " ".join(decision.reasons)
    for word in ("float64", "head_dim 512", "fp8"):
        assert word in text
    decision = TritonDecode().check(replace(PROBLEM, seqlen_q=2**20, batch=64), H100)
    assert isinstance(decision, Rejected) and "programs" in decision.reasons[0]


def test_kernel_is_what_a_forced_backend_gets() -> None:
    q, cache = torch.randn(1, 1, 1, 16), torch.randn(1, 8, 1, 16)
    with configured(None) as launches:
        faops.attention_with_kvcache(q, cache, cache.clone(), backend="triton.decode")
    assert [made.kernel for made in launches] == ["decode.attention_decode"]
