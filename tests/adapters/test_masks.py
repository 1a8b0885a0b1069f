"""Masks stay O(batch × keys), survive copying, and mean what transformers' own mask means."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from faops.adapters import masks
from faops.adapters.transformers_masks import make_mask
from faops.errors import ArgumentError
from faops.problem import Band
from tests.adapters.models import DECODERS, VERSION, close, llama, padding, pair, tokens


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        ]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("kind", ["left", "right", "holes"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@torch.no_grad()
def test_no_query_by_key_tensor_for_a_padded_batch(name: str, kind: str) -> None:
    length = 700
    config = DECODERS[name]()
    config.max_position_embeddings = length
    eager, ours = pair(config)
    ids, mask = tokens(3, length), padding(kind, 3, length)
    largest = {}
    for label, model in (("eager", eager), ("faops", ours)):
        with LargestTensor() as seen:
            model(ids, attention_mask=mask, use_cache=False)
        largest[label] = seen.largest
    assert largest["eager"] >= 3 * length * length  # what the measurement is there to catch
    assert largest["faops"] < length * length


def all_masks(**changes: Any) -> tuple[Tensor | None, Tensor | None]:
    """What our mask function and transformers' own one make of the same arguments."""
    from transformers.masking_utils import sdpa_mask

    arguments = {"batch_size": 2, "q_length": 7, "kv_length": 7, "q_offset": 0, "kv_offset": 0, "attention_mask": None,
                 "allow_is_causal_skip": True, "device": "cpu", **changes}  # fmt: skip
    if "cache_position" in inspect.signature(sdpa_mask).parameters:  # transformers 4
        arguments["cache_position"] = torch.arange(arguments.pop("q_length")) + arguments.pop("q_offset")
    full = sdpa_mask(**{**arguments, "allow_is_causal_skip": False})
    return make_mask(**arguments), full


def pattern(name: str) -> Any:
    """A mask function of transformers."""
    from transformers import masking_utils as library

    if name in ("both sides", "everything") and VERSION < (5, 0):
        pytest.skip("transformers 4 has no bidirectional mask functions")
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 2, 2]])
    made = {
        "causal": lambda: library.causal_mask_function,
        "window": lambda: library.sliding_window_causal_mask_function(3),
        "both sides": lambda: library.sliding_window_bidirectional_mask_function(2),
        "everything": lambda: library.bidirectional_mask_function,
        "packed": lambda: library.and_masks(library.packed_sequence_mask_function(segments), pattern("causal")),
        "packed window": lambda: library.and_masks(library.packed_sequence_mask_function(segments), pattern("window")),
    }
    return made[name]()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["causal", "window", "both sides", "everything", "packed", "packed window"])
def test_key_mask_expands_to_the_mask_of_transformers(name: str, padded: bool) -> None:
    visible = torch.tensor([[False, False, True, True, True, True, True], [True] * 7]) if padded else None
    mine, full = all_masks(mask_function=pattern(name), attention_mask=visible)
    if mine is None:
        assert not padded
        assert name in ("causal", "everything")
        return
    assert masks.is_key_mask(mine)
    assert mine.shape == (2, 1, 1, 7)
    assert torch.equal(masks.expand(mine, 7), full)


@pytest.mark.parametrize("filled", [0, 4])
def test_the_unfilled_part_of_a_static_cache_is_cut_off(filled: int) -> None:
    mine, full = all_masks(mask_function=pattern("window"), q_length=3, kv_length=12, q_offset=torch.tensor(filled))
    assert mine.shape == (2, 1, 1, filled + 3)
    assert torch.equal(masks.expand(mine, 3), full[..., : filled + 3])
    assert not full[..., filled + 3 :].any()


def test_a_caller_that_forbids_skipping_gets_the_whole_mask() -> None:
    mine, full = all_masks(mask_function=pattern("causal"), allow_is_causal_skip=False)
    assert torch.equal(mine, full)


def test_a_pattern_of_the_user_is_evaluated() -> None:
    def every_other(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return (row - key) % 2 == 0

    mine, full = all_masks(mask_function=every_other)
    assert mine.dtype == torch.bool
    assert torch.equal(mine, full)


@pytest.mark.parametrize("band", [Band(), Band(right=0), Band(5, 0), Band(0, 0), Band(4, 4)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_a_copied_key_mask_reads_the_same(band: Band, packed: bool) -> None:
    visible = torch.tensor([[False, True, True, True], [True, True, False, True]])
    segments = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]) if packed else None
    made = masks.encode(band, visible, segments)
    first, again = masks.decode(made), masks.decode(made.clone())
    assert again is not first
    assert (again.band, again.packed) == (band, packed)
    assert torch.equal(again.visible, visible)
    assert (first.packing is None) == (again.packing is None)
    if first.packing is not None:
        assert torch.equal(first.packing.indices, again.packing.indices)
        assert torch.equal(first.packing.cu_seqlens, again.packing.cu_seqlens)


def test_packing_of_padded_rows() -> None:
    visible = torch.tensor([[False, True, True, True], [False] * 4, [True, True, False, False]])
    packing = masks.decode(masks.encode(Band(right=0), visible, None)).packing
    assert packing.indices.tolist() == [1, 2, 3, 8, 9]
    assert packing.cu_seqlens.tolist() == [0, 3, 5]
    assert packing.max_seqlen == 3


def test_a_window_is_not_packed_over_a_gap() -> None:
    visible = torch.tensor([[True, False, True, True]])
    assert masks.decode(masks.encode(Band(2, 0), visible, None)).packing is None
    assert masks.decode(masks.encode(Band(right=0), visible, None)).packing is not None


def test_zeros_and_ones_are_not_a_key_mask() -> None:
    with pytest.raises(ArgumentError, match="attention_mask: got an int64 tensor of zeros and ones"):
        masks.decode(torch.ones(2, 1, 1, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", ["llama", pytest.param("mistral", marks=pytest.mark.full)])
@torch.no_grad()
def test_a_compiled_model_gives_the_same(name: str) -> None:
    eager, ours = pair(DECODERS[name]())
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    ids = tokens(2, 13)
    close(compiled(ids, use_cache=False).logits, eager(ids, use_cache=False).logits)


@torch.no_grad()
def test_compiled_steps_with_a_static_cache() -> None:
    eager, ours = pair(llama())
    ids, mask = tokens(3, 9), padding("left", 3, 9)
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    expected = eager.generate(ids, **options)
    ours.forward = torch.compile(ours.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(ours.generate(ids, **options), expected)
