"""The frequencies of rotary embeddings, plain and stretched to contexts longer than those a model was trained on.

``scaling`` speaks the language of Hugging Face configs (``rope_scaling``, or ``rope_parameters`` from transformers 5):

=============  =====================================================================================================
``rope_type``  other keys, required unless they have a default
=============  =====================================================================================================
``default``    none; as is no ``scaling``
``linear``     ``factor``: positions are divided by it (Chen et al. 2023, arXiv 2306.15595)
``llama3``     ``factor``, ``low_freq_factor``, ``high_freq_factor``, ``original_max_position_embeddings``: low
               frequencies are divided by factor, high ones kept, those between blended (Llama 3.1)
``yarn``       ``factor``, ``original_max_position_embeddings``, ``beta_fast`` (32), ``beta_slow`` (1), ``truncate``
               (True), ``attention_factor`` (0.1 ln factor + 1) (Peng et al. 2023, arXiv 2309.00071)
=============  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from faops.errors import ArgumentError

# Keys that a config may hold beside those of its type, and that say nothing about the frequencies of one head.
IGNORED = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def frequencies(dim: int, base: float, scaling: Mapping[str, Any] | None = None) -> tuple[Tensor, float]:
    """The angle that each pair of dims turns by from one position to the next, and the factor of cos and sin.

    Returns float32 (dim / 2,) on the CPU, in radians, and a number that is 1 but for YaRN. Raises ArgumentError for a
    ``scaling`` of an unknown type, or with a missing or unknown key.
    """
    plain = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if scaling is None:
        return plain, 1.0
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KINDS:
        raise ArgumentError("scaling", f"rope_type {kind!r}", f"one of {', '.join(_KINDS)}")
    required, optional, stretch = _KINDS[kind]
    missing = [key for key in required if scaling.get(key) is None]
    unknown = [key for key in scaling if key not in {*required, *optional, *IGNORED} and scaling[key] is not None]
    if missing or unknown:
        has = f"{kind} without {', '.join(missing)}" if missing else f"{kind} with {', '.join(unknown)}"
        raise ArgumentError("scaling", has, f"the keys {', '.join((*required, *optional)) or 'none'}")
    return stretch(plain, base, {key: value for key, value in scaling.items() if value is not None})


def _plain(plain: Tensor, base: float, keys: Mapping[str, Any]) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(plain: Tensor, base: float, keys: Mapping[str, Any]) -> tuple[Tensor, float]:
    return plain / keys["factor"], 1.0


def _llama3(plain: Tensor, base: float, keys: Mapping[str, Any]) -> tuple[Tensor, float]:
    low, high = keys["low_freq_factor"], keys["high_freq_factor"]
    turns = keys["original_max_position_embeddings"] * plain / (2 * math.pi)  # full turns over the trained context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / keys["factor"] * (1 - kept) + plain * kept, 1.0


def _yarn(plain: Tensor, base: float, keys: Mapping[str, Any]) -> tuple[Tensor, float]:
    dim, factor = 2 * plain.numel(), keys["factor"]

    def pair(turns: float) -> float:
        """The (fractional) pair that makes so many full turns over the trained context."""
        trained = keys["original_max_position_embeddings"]
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair(keys.get("beta_fast", 32)), pair(keys.get("beta_slow", 1))
    if keys.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    pairs = torch.arange(plain.numel(), dtype=torch.float32, device="cpu")
    slow = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    magnitude = keys.get("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return plain / factor * slow + plain * (1 - slow), float(magnitude)


_Stretch = Callable[[Tensor, float, Mapping[str, Any]], tuple[Tensor, float]]
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], _Stretch]] = {
    "default": ((), (), _plain),
    "linear": (("factor",), (), _linear),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), (), _llama3,
    ),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("beta_fast", "beta_slow", "truncate", "attention_factor"),
        _yarn,
    ),
}  # fmt: skip
