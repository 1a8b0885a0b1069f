"""How flash-attn takes and names arguments, where faops does otherwise."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from faops import settings
from faops.api import _draw_rng
from faops.errors import ArgumentError
from faops.problem import UNLIMITED

Window = tuple[int | None, int | None]

# What faops calls an argument, and what flash-attn does.
NAMES = {"scale": "softmax_scale", "window": "window_size"}


class FlashAttnArgumentError(ArgumentError, RuntimeError):
    """An ArgumentError that code written for flash-attn catches too: there, wrong arguments are RuntimeErrors."""


@dataclass(frozen=True)
class Options:
    """What all of flash-attn's calls share."""

    dropout_p: float
    softmax_scale: float | None
    causal: bool
    window_size: Window
    softcap: float
    alibi_slopes: Tensor | None
    deterministic: bool

    @property
    def window(self) -> tuple[int, int]:
        return plain_window(self.window_size)  # type: ignore[no-any-return]

    def keywords(self) -> dict[str, Any]:
        """The options as :func:`faops.attention` takes them."""
        return {**self.cache_keywords(), "dropout_p": self.dropout_p, "deterministic": self.deterministic}

    def cache_keywords(self) -> dict[str, Any]:
        """The options as :func:`faops.attention_with_kvcache` takes them."""
        return {
            "causal": self.causal,
            "window": self.window,
            "scale": self.softmax_scale,
            "softcap": self.softcap,
            "alibi_slopes": self.alibi_slopes,
        }


def plain_window(window: object) -> Any:
    """A window as two ints, -1 for every negative side and for None; what is no pair is left to the checks behind.

    The sides may be numpy's or a tensor's: flash-attn takes all that turns into an int.
    """
    try:
        sides = [UNLIMITED if side is None else length("window_size", side) for side in window]  # type: ignore[attr-defined]
    except (TypeError, FlashAttnArgumentError):
        return window
    return tuple(UNLIMITED if isinstance(side, int) and side < 0 else side for side in sides)


def call(function: Callable[..., Any], *args: Any, renamed: dict[str, str] | None = None, **options: Any) -> Any:
    """``function(*args, **options)``, with errors that name arguments as flash-attn's caller knows them."""
    if torch.compiler.is_compiling():
        return function(*args, **options)
    try:
        return function(*args, **options)
    except ArgumentError as error:
        names = {**NAMES, **(renamed or {})}
        name = names.get(error.argument, error.argument)
        raise FlashAttnArgumentError(name, error.value, error.expected) from None


def last_contiguous(tensor: Any) -> Any:
    """The tensor, copied if its last axis has a stride. What is no tensor is left to the checks behind."""
    if isinstance(tensor, Tensor) and tensor.dim() > 0 and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor


def length(name: str, value: Any) -> Any:
    """A length that may have come as a 0-d tensor or a numpy integer."""
    if isinstance(value, int | torch.SymInt):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise FlashAttnArgumentError(name, repr(value), "an int") from None


def may_read(tensor: Tensor) -> bool:
    """Whether a check may look at values: free on the CPU, a synchronisation elsewhere and so only on request."""
    return tensor.device.type == "cpu" or bool(settings.get("check_values"))


def seeded(device: torch.device) -> tuple[torch.Generator, Tensor]:
    """A generator seeded from torch's default one, and the dropout state that a faops call given it will draw."""
    generator = torch.Generator(device)
    generator.manual_seed(int(torch.randint(2**62, ())))
    state = generator.get_state()
    rng = _draw_rng(generator, device)
    generator.set_state(state)
    return generator, rng
