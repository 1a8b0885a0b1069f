"""The attention of a model in a few numbers, and the problems that running or training the model asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import torch

from faops.device import DeviceProfile, detect
from faops.errors import PlanError
from faops.problem import UNLIMITED, AttentionProblem, Band, dtype_name

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A tuned shape also serves its neighbours (docs/tuning.md), so that these lengths, two octaves apart, cover the rest.
DEFAULT_PROMPTS = (128, 512, 2048)
DEFAULT_CONTEXTS = (256, 1024, 4096)

# What a model does: read a prompt, generate a token through `attention` or through `attention_with_kvcache`, train.
PHASES = ("prefill", "generate", "decode", "training")
DEFAULT_PHASES = ("prefill", "generate")

# Page sizes are compared with caches that have room for the same number of tokens, a multiple of all of them. It must
# not be more than so many times the largest of them.
LARGEST_MULTIPLE = 8


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

    def __str__(self) -> str:
        """In words, such as ``32 heads of 128, 8 key/value heads, causal, windows of 4096 and none``."""
        dims = f"{self.head_dim}/{self.head_dim_v}" if self.head_dim_v else str(self.head_dim)
        words = [f"{self.heads_q} heads of {dims}"]
        if self.heads_kv != self.heads_q:
            words.append(f"{self.heads_kv} key/value head{'s' if self.heads_kv > 1 else ''}")
        words.append("causal" if self.causal else "both ways")
        if any(self.windows):
            words.append("windows of " + " and ".join(str(window or "none") for window in self.windows))
        words += [name for name in ("softcap", "alibi", "sinks") if getattr(self, name)]
        return ", ".join(words)

    def band(self, window: int) -> Band:
        """The band of a kind of layer, before lengths are known."""
        left = window - 1 if window else UNLIMITED
        return Band.of(self.causal, (left, left))


@dataclass(frozen=True)
class Workload:
    """A named list of problems, each with a cache key of its own."""

    name: str
    problems: list[AttentionProblem]


class Options(TypedDict, total=False):
    """How a model is run. Every option may be left out.

    ``dtype``: of queries, keys and values; by default float32 on a CPU and else the 16-bit type that ``device`` is best
    at. ``batch``: sequences at once (1). ``prompt``: lengths of sequences that are read or trained on, ``context``:
    numbers of keys when one token is generated, both in tokens, one or several; by default a few usual ones, as far as
    the model reaches. ``phases``: which of PHASES to tune for (DEFAULT_PHASES); ``training`` and ``kv_cache`` add
    "training" and "decode" to them. ``page_size``: tokens in a page of the KV cache, 0 for one that is dense; it adds
    "decode" as well. Several are to be compared with each other: each gives problems of its own, in caches of the same
    size. ``packed``: sequences that are read or trained on are packed without padding. ``device``: one of this machine,
    or the profile of any other.
    """

    dtype: str | None
    batch: int
    prompt: int | Sequence[int] | None
    context: int | Sequence[int] | None
    phases: str | Sequence[str] | None
    training: bool
    kv_cache: bool
    page_size: int | Sequence[int]
    packed: bool
    device: torch.device | str | DeviceProfile


def derive(config: AttentionConfig, **options: Unpack[Options]) -> list[AttentionProblem]:
    """The problems that a model asks, without those of an equal cache key. Raises PlanError.

    Each prompt gives a forward problem ("prefill"), and a forward with lse and a backward ("training"); each context
    gives a forward problem of one query ("generate") and one of :func:`faops.attention_with_kvcache` with one new key
    ("decode"). A model that is not causal generates nothing. Raises PlanError where nothing is left to tune, too.
    """
    phases = chosen_phases(options)
    dtype, sizes = options.get("dtype"), page_sizes(options)
    base = AttentionProblem(
        dtype=dtype_name(dtype) if dtype else default_dtype(options.get("device", "cpu")),
        batch=_positive("batch", options.get("batch", 1)),
        heads_q=config.heads_q,
        heads_kv=config.heads_kv,
        head_dim=config.head_dim,
        head_dim_v=config.head_dim_v or config.head_dim,
        softcap=config.softcap,
        alibi=config.alibi,
        sinks=config.sinks,
    )
    whole = replace(base, layout="varlen") if options.get("packed") else base
    cached = [replace(base, layout="paged", page_size=size) for size in sizes] or [base]
    unit = math.lcm(*sizes)
    found: list[AttentionProblem] = []
    for length in _lengths("prompt", options.get("prompt"), _default_prompts(config)):
        for window in config.windows:
            found += _reading(whole, config.band(window), length, phases)
    if config.causal:
        for length in _lengths("context", options.get("context"), _known(config, DEFAULT_CONTEXTS)):
            for window in config.windows:
                if "generate" in phases:
                    found.append(_next_token(base, config.band(window), window, length))
                if "decode" in phases:
                    found += [_cached_token(cache, config.band(window), length, unit) for cache in cached]
    if not found:
        model = "a causal model" if config.causal else "a model that sees both ways, which generates nothing,"
        raise PlanError(f"nothing to tune: {model} has no problem of {' or '.join(sorted(phases))} with these lengths")
    return unique(found)


def chosen_phases(options: Options) -> frozenset[str]:
    """The phases that ``options`` ask for. Raises PlanError for an unknown one, and for a page size that is none."""
    given = options.get("phases")
    names = DEFAULT_PHASES if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in PHASES:
            raise PlanError(f"phases: got {name!r}, expected {', '.join(PHASES)}")
    added = {"training": options.get("training"), "decode": options.get("kv_cache") or page_sizes(options)}
    return frozenset(names) | {name for name, asked in added.items() if asked}


def page_sizes(options: Options) -> tuple[int, ...]:
    """The page sizes that ``options`` ask for, none for a dense cache. Raises PlanError for one that is none, and for
    sizes that no cache of a reasonable size is a multiple of."""
    given = options.get("page_size", 0)
    if given == 0:
        return ()
    sizes = tuple(dict.fromkeys(_lengths("page_size", [given] if isinstance(given, str) else given, ())))
    if math.lcm(*sizes) > LARGEST_MULTIPLE * max(sizes, default=1):
        words = ", ".join(map(str, sizes))
        raise PlanError(f"page_size: got {words}, expected sizes with a small common multiple, so as to compare them")
    return sizes


def _reading(base: AttentionProblem, band: Band, length: int, phases: frozenset[str]) -> Iterator[AttentionProblem]:
    """Whole sequences of ``length`` tokens."""
    forward = replace(base, seqlen_q=length, seqlen_k=length, band=band.simplify(length, length))
    if "prefill" in phases:
        yield forward
    if "training" in phases:
        yield replace(forward, need_lse=True)
        yield replace(forward, op="backward", need_lse=True)


def _next_token(base: AttentionProblem, band: Band, window: int, length: int) -> AttentionProblem:
    """One new token, ``length`` keys with its own. A layer with a window keeps no more keys than it sees."""
    kept = min(length, window) if window else length
    return replace(base, seqlen_q=1, seqlen_k=kept, band=band.simplify(1, kept))


def _cached_token(base: AttentionProblem, band: Band, length: int, unit: int) -> AttentionProblem:
    """One new token, appended to a KV cache with room for ``length`` keys, or for the next multiple of ``unit``."""
    room = -(-length // unit) * unit
    return replace(base, op="decode", seqlen_q=1, seqlen_k=room, band=band.simplify(1, room), append=True)


def unique(problems: Iterable[AttentionProblem]) -> list[AttentionProblem]:
    """The first problem of each cache key, in order."""
    found: dict[str, AttentionProblem] = {}
    for problem in problems:
        found.setdefault(problem.key(), problem)
    return list(found.values())


def default_dtype(device: torch.device | str | DeviceProfile) -> str:
    """float32 on a CPU, else bfloat16, or float16 where the matrix units do not take bfloat16."""
    profile = device if isinstance(device, DeviceProfile) else detect(device)
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
