"""The mask function for transformers: what a query may see, in the shortest form.

None where the causality of the module alone decides, a *key mask* (:mod:`faops.adapters.masks`) where padding, windows,
packed sequences or the unfilled part of a static cache do, and a full boolean mask only for patterns that have no
shorter form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from faops.adapters import masks
from faops.problem import UNLIMITED, Band


def make_mask(**arguments: Any) -> Tensor | None:
    """The mask function of transformers' interface; takes its arguments by name, in the form of any version.

    Returns None (causality of the module alone decides), a key mask, or a full bool mask (batch, 1, M, N).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return _traced_mask(arguments)
    pattern = mask_pattern(arguments["mask_function"])
    if pattern is None:
        return _full_mask(arguments)
    band, segments = pattern
    may_skip = arguments.get("allow_is_causal_skip", True) or arguments.get("allow_is_bidirectional_skip", False)
    rows, keys, shift = _extent(arguments)
    # A caller that forbids skipping wants a mask of fixed size and full meaning (such as for compiled decoding).
    if not masks.representable(band) or not (may_skip or segments is not None):
        return _full_mask(arguments)
    if not band.full:
        # The diagonal of a band ends at the last key, so the unfilled rest of a static cache is cut off.
        length = rows + int(shift)
        if not 0 < length <= keys or (band.right != 0 and length != keys):
            return _full_mask(arguments)
    else:
        length = keys
    visible = _visible_keys(arguments, length)
    no_window = band.simplify(rows, length).left == UNLIMITED
    if segments is None and visible is None and length == keys and no_window:
        return None
    if visible is None:
        visible = torch.ones(arguments["batch_size"], length, dtype=torch.bool, device=arguments.get("device"))
    return masks.encode(band, visible, segments)


def mask_pattern(function: Callable[..., Any]) -> tuple[Band, Tensor | None] | None:
    """The band and the packed segments, int64 (batch, keys), that a mask function of transformers means.

    None for a function that is not one of its own plain patterns (user overlays, chunked attention): those have to be
    evaluated.
    """
    from transformers import masking_utils

    if function is masking_utils.causal_mask_function:
        return Band(right=0), None
    if function is getattr(masking_utils, "bidirectional_mask_function", None):
        return Band(), None
    if getattr(function, "__module__", None) != masking_utils.__name__ or function.__closure__ is None:
        return None
    maker = function.__qualname__.partition(".")[0]
    made_with = {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__)}
    try:
        if maker == "sliding_window_overlay":
            return Band(left=int(made_with["sliding_window"]) - 1), None
        if maker == "sliding_window_bidirectional_overlay":
            return Band(int(made_with["sliding_window"]), int(made_with["sliding_window"])), None
        if maker == "packed_sequence_mask_function":
            return Band(), made_with["packed_sequence_mask"].long()
        if maker == "remap_positions_for_packed_sequence":
            return mask_pattern(made_with["mask_function"])
        if maker == "and_masks":
            return _both(made_with["mask_functions"])
    except KeyError:  # another version of transformers, with other names inside: the function can still be evaluated
        return None
    return None


def _both(functions: tuple[Callable[..., Any], ...]) -> tuple[Band, Tensor | None] | None:
    """The pattern of keys that all ``functions`` show."""
    band = Band()
    segments: Tensor | None = None
    for function in functions:
        pattern = mask_pattern(function)
        if pattern is None or (segments is not None and pattern[1] is not None):
            return None
        band = Band(_narrower(band.left, pattern[0].left), _narrower(band.right, pattern[0].right))
        segments = pattern[1] if segments is None else segments
    return band, segments


def _narrower(one: int, other: int) -> int:
    if UNLIMITED in (one, other):
        return max(one, other)
    return min(one, other)


def _extent(arguments: dict[str, Any]) -> tuple[int, int, Any]:
    """Query rows, keys, and the key position of the first row; versions before 5 give positions of all rows."""
    keys, kv_offset = int(arguments["kv_length"]), arguments.get("kv_offset", 0)
    positions = arguments.get("cache_position")
    if positions is not None:
        return positions.shape[0], keys, positions[0] - kv_offset
    return int(arguments["q_length"]), keys, arguments.get("q_offset", 0) - kv_offset


def _visible_keys(arguments: dict[str, Any], length: int) -> Tensor | None:
    """Padding of the first ``length`` keys, bool (batch, length); None where there is none."""
    padding: Tensor | None = arguments.get("attention_mask")
    if padding is None:
        return None
    offset = int(arguments.get("kv_offset", 0))
    padding = padding[:, offset : offset + length].bool()
    if padding.shape[1] < length:
        padding = nn.functional.pad(padding, (0, length - padding.shape[1]))
    return None if bool(padding.all()) else padding.expand(arguments["batch_size"], -1)


def _full_mask(arguments: dict[str, Any]) -> Tensor:
    """The mask evaluated for every (query, key) pair by transformers: bool (batch, 1, M, N)."""
    from transformers.masking_utils import sdpa_mask

    skip_nothing = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask = sdpa_mask(**{**arguments, **skip_nothing})
    assert isinstance(mask, Tensor)  # it is None only where skipping is allowed
    return mask


def _traced_mask(arguments: dict[str, Any]) -> Tensor | None:
    """As :func:`make_mask` for code that may not read values or look into functions."""
    may_skip = arguments.get("allow_is_causal_skip", True) or arguments.get("allow_is_bidirectional_skip", False)
    plain = arguments.get("attention_mask") is None and arguments.get("local_size") is None
    if may_skip and plain and arguments.get("q_length") == arguments["kv_length"]:
        return None
    return _full_mask(arguments)
