"""The attention of a model in a few numbers, and the problems that running or training the model asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from faops.device import detect
from faops.errors import PlanError
from faops.problem import UNLIMITED, AttentionProblem, Band, dtype_name

# A tuned shape also serves its neighbours (docs/tuning.md), so that these lengths, two octaves apart, cover the rest.
DEFAULT_PROMPTS = (128, 512, 2048)
DEFAULT_CONTEXTS = (256, 1024, 4096)


@dataclass(frozen=True)
class AttentionConfig:
    """What a model's layers have in common.

    ``windows`` lists the distinct kinds of layer: 0 for full attention, else the number of keys a row sees, itself
    included, to its left (and as many to its right when not ``causal``). ``positions`` is the longest sequence, 0 if
    unknown; ``fixed_length`` is set for models whose sequences all have one length.
    """

    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int = 0  # 0: like head_dim
    windows: tuple[int, ...] = (0,)
    causal: bool = True
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False
    positions: int = 0
    fixed_length: int = 0

    def __post_init__(self) -> None:
        for name in ("heads_q", "heads_kv", "head_dim"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.heads_q % self.heads_kv:
            raise PlanError(f"heads_q: got {self.heads_q}, expected a multiple of heads_kv={self.heads_kv}")

    def band(self, window: int) -> Band:
        """The band of a kind of layer, before lengths are known."""
        left = window - 1 if window else UNLIMITED
        return Band.of(self.causal, (left, left))


@dataclass(frozen=True)
class Workload:
    """A named list of problems, each with a cache key of its own."""

    name: str
    problems: list[AttentionProblem]


def derive(
    config: AttentionConfig,
    *,
    dtype: str | None = None,
    batch: int = 1,
    prompt: int | Sequence[int] | None = None,
    context: int | Sequence[int] | None = None,
    training: bool = False,
    kv_cache: bool = False,
    device: torch.device | str = "cpu",
) -> list[AttentionProblem]:
    """The problems that a model asks, without those of an equal cache key.

    ``prompt``: lengths of the sequences read at once; each gives a forward problem and, with ``training``, a forward
    with lse and a backward. ``context``: numbers of keys when one token is generated; each gives a forward problem
    of one query, and with ``kv_cache`` the problem of :func:`faops.attention_with_kvcache` with a new key. ``dtype``
    is by default float32 on a CPU and else the 16-bit type that ``device`` is best at. Raises PlanError.
    """
    base = AttentionProblem(
        dtype=dtype_name(dtype) if dtype else default_dtype(device),
        batch=_positive("batch", batch),
        heads_q=config.heads_q,
        heads_kv=config.heads_kv,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v or config.head_dim,
        softcap=config.softcap,
        alibi=config.alibi,
        sinks=config.sinks,
    )
    found: list[AttentionProblem] = []
    for length in _lengths("prompt", prompt, _default_prompts(config)):
        for window in config.windows:
            band = config.band(window).simplify(length, length)
            forward = replace(base, seqlen_q=length, seqlen_k=length, band=band)
            found.append(forward)
            if training:
                found.append(replace(forward, need_lse=True))
                found.append(replace(forward, op="backward", need_lse=True))
    if config.causal:
        for length in _lengths("context", context, _known(config, DEFAULT_CONTEXTS)):
            for window in config.windows:
                found += _generation(base, config, window, length, kv_cache)
    return unique(found)


def _generation(
    base: AttentionProblem, config: AttentionConfig, window: int, length: int, kv_cache: bool
) -> list[AttentionProblem]:
    """One new token after ``length`` keys. A layer with a window keeps no more keys than it sees."""
    kept = min(length, window) if window else length
    found = [replace(base, seqlen_q=1, seqlen_k=kept, band=config.band(window).simplify(1, kept))]
    if kv_cache:
        band = config.band(window).simplify(1, length)
        found.append(replace(base, op="decode", seqlen_q=1, seqlen_k=length, band=band, append=True))
    return found


def unique(problems: Iterable[AttentionProblem]) -> list[AttentionProblem]:
    """The first problem of each cache key, in order."""
    found: dict[str, AttentionProblem] = {}
    for problem in problems:
        found.setdefault(problem.key(), problem)
    return list(found.values())


def default_dtype(device: torch.device | str) -> str:
    """float32 on a CPU, else bfloat16, or float16 where the matrix units do not take bfloat16."""
    profile = detect(device)
    if profile.torch_type == "cpu":
        return "float32"
    return "bfloat16" if profile.limits.bfloat16 else "float16"


def _default_prompts(config: AttentionConfig) -> tuple[int, ...]:
    return (config.fixed_length,) if config.fixed_length else _known(config, DEFAULT_PROMPTS)


def _known(config: AttentionConfig, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Those of ``lengths`` that the model can reach; its longest one where it can reach none."""
    if not config.positions:
        return lengths
    return tuple(length for length in lengths if length <= config.positions) or (config.positions,)


def _lengths(name: str, given: int | Sequence[int] | None, default: tuple[int, ...]) -> list[int]:
    if given is None:
        return list(default)
    values = [given] if isinstance(given, int) else list(given)
    return [_positive(name, value) for value in values]


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{name}: got {value!r}, expected a whole number of at least 1")
    return value
