"""Where an Ascend NPU's operators read the keys of a KV-cache call: in place, or copied."""

from __future__ import annotations

import pytest
import torch

from tests import kvcache
from tests.npu import double
from tests.npu.cachecalls import check
from tests.npu.test_infer_decode import KERNEL, fused_calls, half, lengths_of, use


@pytest.mark.parametrize(
    ("page", "M", "in_place"),
    [(16, 1, True), (128, 1, True), (256, 1, True), (512, 1, True), (1, 1, False), (24, 1, False), (528, 1, False),
     (128, 5, True), (256, 5, True), (16, 5, False), (640, 5, False)],
)  # fmt: skip
def test_pages_are_read_in_place_where_the_operator_takes_their_size(
    npu: double.Handle, page: int, M: int, in_place: bool
) -> None:
    call = half("paged", M=M, keys=70, page=page)
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert (arguments["block_table"] is not None) == in_place
    if in_place:
        assert arguments["block_size"] == page
        assert arguments["key"].data_ptr() == call.tensors[1].data_ptr()
        assert arguments["key"].dim() == 3, "pages whose sequence comes first are (pages, size, Hk · D)"
        assert lengths_of(arguments) == call.options["cache_seqlens"].clamp(min=1).tolist(), "each its own, not summed"


def test_packed_rows_read_pages_of_16_in_place(npu: double.Handle) -> None:
    call = half("paged", "causal", "append", M=5, keys=70, page=48, dim=128, dim_v=128)
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["input_layout"] == "TND" and arguments["block_size"] == 48
    queries = arguments.get("actual_seq_qlen", arguments.get("actual_seq_lengths"))
    assert queries == [5, 10], "cumulative, without the leading 0"
    assert lengths_of(arguments) == (call.options["cache_seqlens"] + 5).tolist()


def test_packed_rows_without_a_band_still_have_a_mask(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, layout="TND")
    check(half("paged", M=1, keys=70, page=16, dim=128, dim_v=128), KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["input_layout"] == "TND" and arguments["sparse_mode"] == 4
    assert arguments["atten_mask"] is not None


def test_heads_first_pages(npu: double.Handle) -> None:
    call = half("paged", "bhsd", M=5, keys=150, page=128)
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["input_layout"] == "BNSD"
    assert arguments["key"].shape == call.tensors[1].shape and arguments["key"].data_ptr() == call.tensors[1].data_ptr()


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_a_dense_cache_is_read_in_place(npu: double.Handle, layout: str) -> None:
    call = half(*(["bhsd"] if layout == "bhsd" else []), "causal", M=5, keys=70)
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["key"].data_ptr() == call.tensors[1].data_ptr()
    assert arguments["block_table"] is None


@pytest.mark.parametrize("features", [("batch_idx",), ("leftpad",), ("window_left",)])
def test_a_dense_cache_is_read_as_pages(npu: double.Handle, features: tuple[str, ...]) -> None:
    batch, keys = 2, 256
    q = torch.randn(batch, 1, 4, 64).half()
    k_cache, v_cache = (torch.randn(batch + 1, keys, 2, 64).half() for _ in range(2))
    options: dict[str, object] = {"cache_seqlens": torch.tensor([200, 177], dtype=torch.int32)}
    if "batch_idx" in features:
        options["cache_batch_idx"] = torch.tensor([2, 0], dtype=torch.int32)
    if "leftpad" in features:
        options["cache_leftpad"] = torch.tensor([0, 0], dtype=torch.int32)
        k_cache, v_cache = k_cache[:, :256], v_cache[:, :256]
        options["cache_batch_idx"] = torch.tensor([1, 0], dtype=torch.int32)
    if "window_left" in features:
        options["window"] = (17, 0)
    call = kvcache.Call([q, k_cache, v_cache, None, None], options, torch.float16, str(features))
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["block_size"] == 256 and arguments["key"].data_ptr() == k_cache.data_ptr()


def test_a_window_skips_the_pages_before_it(npu: double.Handle) -> None:
    call = half("paged", "causal", M=1, keys=170, page=16)
    call.options["window"] = (20, 0)
    call.options["causal"] = False
    lengths = call.options["cache_seqlens"].tolist()
    for table, length in zip(call.options["block_table"], lengths):
        table[: max(0, length - 21) // 16] = -7  # pages before the window may be gone
    check(call, KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["block_table"].shape[1] <= 3
    assert arguments["pse_shift"].shape[1:] == (4, 1, arguments["block_table"].shape[1] * 16)


def test_keys_are_gathered_and_merged_part_by_part(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, keys="gathered", gather=1)
    for M, features in ((1, ("paged", "rotary", "append")), (5, ("paged", "causal", "mask"))):
        npu.calls.clear()
        check(half(*features, M=M, keys=300, page=3, batch=3), KERNEL)
        assert len(fused_calls(npu)) == 3
        assert npu.count("npu_attention_update") == 1
        assert all(arguments["key"].shape[1] <= 128 for arguments in fused_calls(npu))


def test_parts_hold_as_many_keys_as_there_are_rows(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all rows see what lies before the last part."""
    use(monkeypatch, keys="gathered", gather=1)
    check(half("causal", M=150, keys=400), KERNEL)
    assert len(fused_calls(npu)) == 2


def test_copied_pages_end_where_the_table_does(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that starts late is copied as far as the longest one, which is behind its last page."""
    use(monkeypatch, keys="gathered")
    k_cache, v_cache = (torch.randn(8, 16, 2, 64).half() for _ in range(2))
    options = {
        "block_table": torch.randperm(8).view(2, 4).int(), "cache_seqlens": torch.tensor([60, 64], dtype=torch.int32),
        "cache_leftpad": torch.tensor([32, 0], dtype=torch.int32),
    }  # fmt: skip
    q = torch.randn(2, 1, 4, 64).half()
    check(kvcache.Call([q, k_cache, v_cache, None, None], options, torch.float16, ""), KERNEL)


def test_splits_are_a_hint_where_keys_are_gathered(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, keys="gathered")
    call = half(M=1, keys=300)
    call.options["num_splits"] = 3
    check(call, KERNEL)
    assert len(fused_calls(npu)) == 3


def test_gathering_by_the_operator(npu: double.Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, keys="gathered")
    check(half("paged", "causal", "append", M=5, keys=70, page=16), KERNEL)
    assert npu.count("npu_gather_pa_kv_cache") == 1


def test_sequences_that_share_pages_are_copied(npu: double.Handle) -> None:
    """The operator wants as many pages as the sequences have together."""
    k_cache, v_cache = (torch.randn(3, 128, 2, 64).half() for _ in range(2))
    table = torch.tensor([[0, 1], [0, 2]], dtype=torch.int32)
    options = {"block_table": table, "cache_seqlens": torch.tensor([200, 180], dtype=torch.int32)}
    q = torch.randn(2, 1, 4, 64).half()
    check(kvcache.Call([q, k_cache, v_cache, None, None], options, torch.float16, ""), KERNEL)
    [arguments] = fused_calls(npu)
    assert arguments["block_table"] is None


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize("keys", ["in_place", "gathered"])
@pytest.mark.parametrize("page", [16, 3])
def test_unused_entries_of_the_table_hold_anything(
    npu: double.Handle, monkeypatch: pytest.MonkeyPatch, page: int, keys: str, looked_at: bool
) -> None:
    """On an NPU nobody has looked at the table before; a sequence without keys has no entry that is used."""
    for module in ("append", "pages"):
        monkeypatch.setattr(f"faops.backends.npu.inference.{module}.may_read", lambda tensor: looked_at)
    use(monkeypatch, keys=keys)
    call = half("paged", M=1, keys=50, page=page)
    table, lengths = call.options["block_table"], call.options["cache_seqlens"]
    if not looked_at:  # lengths without a 0, for which the table is held inside of the cache anyway
        lengths.copy_(torch.tensor([50, 20]))
        for cache in call.tensors[1:3]:
            cache.nan_to_num_(0.5)
    for row, length, unused in zip(table, lengths.tolist(), (-9, 999)):
        row[-(-length // page) :] = unused
    check(call, KERNEL)
    for arguments in fused_calls(npu):
        if arguments["block_table"] is not None and not looked_at:
            assert arguments["block_table"].min() >= 0 and arguments["block_table"].max() < call.tensors[1].shape[0]
