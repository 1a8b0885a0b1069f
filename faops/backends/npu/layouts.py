"""Tensors of faops, (B, M, H, D) with any strides, in the layouts that the operators read, without a copy if possible.

An operator names the order of axes that it reads and wants it contiguous (a strided tensor it copies itself, unseen).
The same memory can be had under several names: a tensor that lies heads-first is BNSD as it is, and one that lies
sequence-first is SBH. So the layout is chosen by what is already there, and only what does not fit it is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

AS_GIVEN = "as_given"
DENSE = ("BSND", "BNSD", "SBH")  # in order of preference where several cost the same
PACKED = "TND"


def arrange(tensor: Tensor, layout: str) -> Tensor:
    """(B, M, H, D) as a contiguous tensor of ``layout``; the given memory where it lies so already."""
    if layout == "BNSD":
        return tensor.transpose(1, 2).contiguous()
    if layout == "SBH":
        return tensor.transpose(0, 1).contiguous().flatten(2)
    return tensor.contiguous()


def restore(result: Tensor, layout: str, heads: int) -> Tensor:
    """What an operator returned in ``layout`` as (B, M, H, D), a view."""
    if layout == "BNSD":
        return result.transpose(1, 2)
    if layout == "SBH":
        return result.view(*result.shape[:2], heads, -1).transpose(0, 1)
    return result


def fits(tensor: Tensor, layout: str) -> bool:
    """Whether :func:`arrange` copies nothing."""
    if layout == "BNSD":
        return tensor.transpose(1, 2).is_contiguous()
    if layout == "SBH":
        return tensor.transpose(0, 1).is_contiguous()
    return tensor.is_contiguous()


def of_result(q: Tensor) -> str:
    """The layout that a result must lie in: that of q's axes (:func:`faops.layout.empty_out`)."""
    return "BNSD" if q.stride(1) < q.stride(2) else "BSND"


def choose(layout: str, operands: Sequence[Tensor], results: Sequence[Tensor]) -> str:
    """``layout``, or for "as_given" the one in which the fewest elements are copied.

    ``results`` are tensors (B, M, H, D) like which a result must lie.
    """
    if layout != AS_GIVEN:
        return layout
    cost = {}
    for each in DENSE:
        copied = [tensor for tensor in operands if not fits(tensor, each)]
        copied += [tensor for tensor in results if of_result(tensor) != each]
        if not copied:
            return each
        cost[each] = sum(tensor.numel() for tensor in copied)
    return min(cost, key=cost.__getitem__)
