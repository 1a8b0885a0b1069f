"""Bringing tensors into the operators' layouts: nothing is copied that lies right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from faops.backends.npu import layouts


def lying(layout: str, batch: int = 2, rows: int = 5, heads: int = 3, dim: int = 4) -> Tensor:
    """(B, M, H, D) whose memory is in ``layout``."""
    if layout == "BNSD":
        return torch.randn(batch, heads, rows, dim).transpose(1, 2)
    if layout == "SBH":
        return torch.randn(rows, batch, heads, dim).transpose(0, 1)
    return torch.randn(batch, rows, heads, dim)


@pytest.mark.parametrize("layout", layouts.DENSE)
@pytest.mark.parametrize("given", layouts.DENSE)
def test_values_survive_and_fitting_memory_is_kept(given: str, layout: str) -> None:
    tensor = lying(given)
    arranged = layouts.arrange(tensor, layout)
    assert arranged.is_contiguous()
    assert arranged.dim() == len(layout)
    assert (arranged.data_ptr() == tensor.data_ptr()) == (given == layout) == layouts.fits(tensor, layout)
    restored = layouts.restore(arranged, layout, 3)
    assert torch.equal(restored, tensor)
    assert restored.data_ptr() == arranged.data_ptr()


@pytest.mark.parametrize("given", ["BSND", "BNSD"])
def test_the_given_layout_is_chosen(given: str) -> None:
    q, k = lying(given), lying(given, rows=7)
    assert layouts.choose("as_given", [q, k, k], [q]) == given


def test_sequence_first_tensors_stay_as_they_are_if_that_is_least() -> None:
    """The result must be BSND, so a copy of it is set against copies of three operands."""
    q, k = lying("SBH"), lying("SBH", rows=7)
    assert layouts.choose("as_given", [q, k, k], [q]) == "SBH"
    assert layouts.choose("as_given", [q, lying("BSND", rows=700)], [q]) == "BSND"


def test_the_largest_tensor_decides() -> None:
    assert layouts.choose("as_given", [lying("BSND"), lying("BNSD", rows=100)], [lying("BSND")]) == "BNSD"


def test_the_result_decides_between_equals() -> None:
    """It has to lie like q, so in another layout it would be copied too."""
    assert layouts.choose("as_given", [lying("BNSD"), lying("BSND")], [lying("BNSD")]) == "BNSD"
    assert layouts.choose("as_given", [lying("BNSD"), lying("BSND")], [lying("BSND")]) == "BSND"


def test_a_named_layout_is_obeyed() -> None:
    assert layouts.choose("SBH", [lying("BNSD")], []) == "SBH"


def test_slices_of_a_packed_projection_are_copied() -> None:
    q, k, _ = torch.randn(2, 5, 3, 3, 4).unbind(2)
    assert layouts.choose("as_given", [q, k], [q]) == "BSND"
    assert torch.equal(layouts.arrange(q, "BSND"), q)
