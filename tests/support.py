"""Random attention calls of every kind, and the accuracy rule they are held to.

Accuracy rule: against the float64 oracle, the largest error is at most 2 × that of PyTorch's own unfused attention in
the same dtype (3 × for gradients), plus a few units in the last place of the largest value.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import faops
from faops import reference
from faops.api import _draw_rng

SIZES = (1, 63, 65, 127, 129, 257)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OUT_FACTOR, GRAD_FACTOR = 2.0, 3.0
# Slack in units of eps × the largest value. 16-bit results are rounded once; a 16-bit backward also starts from the
# rounded out. float32 sums run in another order than the unfused ones, and in float64 the unfused computation is the
# oracle itself, with an error of 0.
OUT_SLACK = {torch.float16: 1.0, torch.bfloat16: 1.0, torch.float32: 8.0, torch.float64: 512.0}
GRAD_SLACK = {**OUT_SLACK, torch.float16: 3.0, torch.bfloat16: 3.0}
# Gradients are differences of terms of order 1 to 10 which may cancel to 0 (with a single key they do), and those of
# bias are sums of thousands of them; the remainder is this many eps of the dtype that kernels compute in.
CANCELLATION = 256.0
# Where the unfused gradient is exactly 0 (every row sees one key), a 16-bit one still starts from a rounded out.
EXACT_ZERO = 8.0
LSE_BOUND = 1e-4  # lse is float32 for 16-bit inputs too and must be computed as such, × max(1, largest lse)


@dataclass
class Case:
    """One attention call: shape, features by name, and later its tensors."""

    features: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    batch: int = 2
    seqlen_q: int = 33
    seqlen_k: int = 65
    heads_q: int = 4
    heads_kv: int = 4
    head_dim: int = 40
    head_dim_v: int = 40
    layout: str = "bshd"
    varlen: bool = False
    lse_grad: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> str:
        return f"{self.seqlen_q}x{self.seqlen_k} h{self.heads_q}/{self.heads_kv} d{self.head_dim}/{self.head_dim_v}"

    def pairs_shape(self) -> tuple[int, int, int, int]:
        """A random broadcast pattern of (B, H, M, N)."""
        full = (self.batch, self.heads_q, self.seqlen_q, self.seqlen_k)
        return tuple(random.choice((1, size)) for size in full)  # type: ignore[return-value]


def _change_shape(**changes: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, **changes)


def _set_options(make: Callable[[Case], dict[str, Any]]) -> Callable[[Case], Case]:
    return lambda case: replace(case, options={**case.options, **make(case)})


def _side(length: int) -> int:
    """One side of a random window: short, or anything up to the length."""
    return random.randint(0, random.choice((3, length)))


def random_mask(shape: tuple[int, ...]) -> Tensor:
    """About 70 % visible; some rows of it see nothing."""
    mask = torch.rand(shape) < 0.7
    return mask & (torch.rand(*shape[:-1], 1) < 0.9)


# Features that change the shape come first: the others look at it.
FEATURES: dict[str, Callable[[Case], Case]] = {
    "gqa": _change_shape(heads_q=6, heads_kv=2),
    "mqa": _change_shape(heads_q=3, heads_kv=1),
    "value_dim": _change_shape(head_dim_v=24),
    "bhsd": _change_shape(layout="bhsd"),
    "varlen": _change_shape(varlen=True, batch=4),
    "lse_grad": _change_shape(lse_grad=True),
    "causal": _set_options(lambda case: {"causal": True}),
    "window": _set_options(lambda case: {"window": (_side(case.seqlen_k), _side(case.seqlen_q))}),
    "window_left": _set_options(lambda case: {"window": (_side(case.seqlen_k), None)}),
    "window_right": _set_options(lambda case: {"window": (-1, _side(case.seqlen_q))}),
    "scale": _set_options(lambda case: {"scale": random.uniform(0.02, 0.5)}),
    "softcap": _set_options(lambda case: {"softcap": random.uniform(0.5, 3.0)}),
    "alibi": _set_options(lambda case: {"alibi_slopes": torch.rand(case.heads_q) * 0.3}),
    "alibi_batch": _set_options(lambda case: {"alibi_slopes": torch.rand(case.batch, case.heads_q) * 0.3}),
    "bias": _set_options(lambda case: {"bias": torch.randn(case.pairs_shape()).to(case.dtype)}),
    "mask": _set_options(lambda case: {"mask": random_mask(case.pairs_shape())}),
    "sinks": _set_options(lambda case: {"sinks": torch.randn(case.heads_q).to(case.dtype) + 1.0}),
    "dropout": _set_options(lambda case: {"dropout_p": random.uniform(0.1, 0.6)}),
    "deterministic": _set_options(lambda case: {"deterministic": True}),
}  # fmt: skip

FORWARD = [name for name in FEATURES if name not in ("lse_grad", "deterministic")]  # what a forward kernel sees
EXCLUSIVE = (
    {"gqa", "mqa"},
    {"window", "window_left", "window_right"},
    {"alibi", "alibi_batch"},
)


def compatible(features: tuple[str, ...]) -> bool:
    return not any(len(group & set(features)) > 1 for group in EXCLUSIVE)


def covering_sets(names: Sequence[str], draws: int = 60) -> list[tuple[str, ...]]:
    """Few compatible sets of names, such that every compatible pair of names is together in one of them; by greedy
    choice among random candidates, the same ones in every run.
    """
    chance = random.Random(0)
    open_pairs = {frozenset(pair) for pair in itertools.combinations(names, 2) if compatible(pair)}
    sets = []
    while open_pairs:
        candidates = [_candidate(names, open_pairs, chance) for _ in range(draws)]
        best = max(candidates, key=lambda chosen: len(open_pairs & _pairs(chosen)))
        open_pairs -= _pairs(best)
        sets.append(best)
    return sets


def _candidate(names: Sequence[str], open_pairs: set[frozenset[str]], chance: random.Random) -> tuple[str, ...]:
    """A largest compatible set grown from a pair that is still open."""
    chosen = tuple(sorted(chance.choice(sorted(open_pairs, key=sorted))))
    for name in chance.sample(names, len(names)):
        if name not in chosen and compatible((*chosen, name)):
            chosen = (*chosen, name)
    return chosen


def _pairs(chosen: tuple[str, ...]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in itertools.combinations(chosen, 2)}


def make_case(*features: str, **shape: Any) -> Case:
    """A case with these features, in the order that FEATURES lists them."""
    ordered = tuple(name for name in FEATURES if name in features)
    assert len(ordered) == len(features)
    case = Case(features=ordered, **shape)
    for name in ordered:
        case = FEATURES[name](case)
    return case


@dataclass
class Inputs:
    """The tensors of a case. ``leaves`` are those that get a gradient, in a fixed order."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any]
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        found = {"q": self.q, "k": self.k, "v": self.v}
        found.update({name: self.options[name] for name in ("bias", "sinks") if name in self.options})
        return found

    def fresh(self, dtype: torch.dtype | None = None) -> Inputs:
        """The same values as new leaves, in ``dtype`` if given."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype or tensor.dtype).requires_grad_()

        options = {name: leaf(value) if name in ("bias", "sinks") else value for name, value in self.options.items()}
        return replace(self, q=leaf(self.q), k=leaf(self.k), v=leaf(self.v), options=options)


def random_lengths(count: int, longest: int) -> list[int]:
    """``count`` lengths up to ``longest``, the longest and an empty one among them."""
    lengths = [longest, 0] + [random.randint(0, longest) for _ in range(count - 2)]
    random.shuffle(lengths)
    return lengths


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def make_inputs(case: Case) -> Inputs:
    cu_q = cu_k = None
    if case.varlen:
        cu_q = cumulative(random_lengths(case.batch, case.seqlen_q))
        cu_k = cumulative(random_lengths(case.batch, case.seqlen_k))
        rows, keys = (int(cu_q[-1]),), (int(cu_k[-1]),)
    else:
        rows, keys = (case.batch, case.seqlen_q), (case.batch, case.seqlen_k)

    def tensor(tokens: tuple[int, ...], heads: int, dim: int) -> Tensor:
        values = torch.randn(*tokens, heads, dim).to(case.dtype)
        return values.transpose(-3, -2).contiguous() if case.layout == "bhsd" else values

    return Inputs(
        tensor(rows, case.heads_q, case.head_dim),
        tensor(keys, case.heads_kv, case.head_dim),
        tensor(keys, case.heads_kv, case.head_dim_v),
        dict(case.options),
        cu_q,
        cu_k,
    ).fresh()


def run_faops(case: Case, inputs: Inputs, backend: str | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(out, lse) of the call through faops; ``seed`` fixes the dropout mask."""
    generator = torch.Generator(inputs.q.device).manual_seed(seed)
    options = {**inputs.options, "return_lse": True, "backend": backend, "generator": generator, "layout": case.layout}
    q, k, v, cu_q, cu_k = inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q, inputs.cu_seqlens_k
    if cu_q is not None and cu_k is not None:
        return faops.attention_varlen(q, k, v, cu_q, cu_k, case.seqlen_q, case.seqlen_k, **options)
    return faops.attention(q, k, v, **options)


def run_reference(case: Case, inputs: Inputs, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(out, lse) of the call through the oracle's code, computed in ``dtype``."""
    options = {name: value for name, value in inputs.options.items() if name != "deterministic"}
    if "window" in options:
        options["window"] = tuple(-1 if side is None else side for side in options["window"])
    if options.get("dropout_p", 0) > 0:
        options["rng"] = _draw_rng(torch.Generator().manual_seed(seed), inputs.q.device)
    q, k, v, cu_q, cu_k = inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q, inputs.cu_seqlens_k
    if cu_q is None or cu_k is None:
        return reference.attention(q, k, v, layout=case.layout, dtype=dtype, **options)
    if case.layout == "bshd":
        return reference.attention_varlen(q, k, v, cu_q, cu_k, dtype=dtype, **options)
    q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    out, lse = reference.attention_varlen(q, k, v, cu_q, cu_k, dtype=dtype, **options)
    return out.transpose(0, 1), lse


def gradients(inputs: Inputs, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None) -> dict[str, Tensor]:
    outputs, weights = (
        ([out], [dout.to(out.dtype)]) if dlse is None else ([out, lse], [dout.to(out.dtype), dlse.to(lse.dtype)])
    )
    found = torch.autograd.grad(outputs, list(inputs.leaves.values()), weights)
    return dict(zip(inputs.leaves, found))


def largest(tensor: Tensor) -> float:
    """Largest finite magnitude; 0 for an empty tensor."""
    finite = tensor.detach()[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def assert_accurate(
    what: str, actual: Tensor, exact: Tensor, unfused: Tensor, context: str, noise: float = 0.0
) -> None:
    """The accuracy rule for one tensor: out, lse or, named with a leading d, a gradient with ``noise`` of its own."""
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}: {context}"
    assert not actual.isnan().any(), f"{what} has NaN: {context}"
    assert torch.equal(actual.isinf(), exact.isinf()), f"{what} is infinite elsewhere than the oracle: {context}"
    finite = exact.isfinite()
    error = largest((actual.double() - exact)[finite])
    unfused_error = largest((unfused.double() - exact)[finite])
    eps = torch.finfo(actual.dtype).eps
    if what.startswith("d"):
        compute_eps = min(eps, torch.finfo(torch.float32).eps)
        allowed = GRAD_FACTOR * unfused_error + GRAD_SLACK[actual.dtype] * eps * largest(exact)
        allowed += CANCELLATION * compute_eps + noise + (EXACT_ZERO * eps if unfused_error == 0 else 0.0)
    else:
        allowed = OUT_FACTOR * unfused_error + OUT_SLACK[actual.dtype] * eps * largest(exact)
    if what == "lse":
        allowed = min(allowed, LSE_BOUND * max(1.0, largest(exact)))
    values = (
        f"error {error:.3g}, allowed {allowed:.3g}, unfused {unfused_error:.3g}, largest value {largest(exact):.3g}"
    )
    assert error <= allowed, f"{what}: {values}: {context}"


def check(case: Case, backend: str | None = None, *, backward: bool = True) -> None:
    """Run a case with random inputs forward and backward through faops and hold it to the accuracy rule."""
    inputs = make_inputs(case)
    exact, plain = inputs.fresh(torch.float64), inputs.fresh()
    seed = random.getrandbits(31)
    numbers = {name: value for name, value in case.options.items() if not isinstance(value, Tensor)}
    context = f"{case.features} {case.dtype} {case.tokens} backend={backend} {numbers}"

    out, lse = run_faops(case, inputs, backend, seed)
    exact_out, exact_lse = run_reference(case, exact, torch.float64, seed)
    plain_out, plain_lse = run_reference(case, plain, case.dtype, seed)
    assert out.dtype == case.dtype
    assert lse.dtype == (torch.float64 if case.dtype == torch.float64 else torch.float32)
    assert_accurate("out", out, exact_out, plain_out, context)
    assert_accurate("lse", lse, exact_lse, plain_lse, context)
    if not backward:
        return
    dout = torch.randn_like(exact_out).to(case.dtype)
    dlse = torch.randn_like(exact_lse).to(lse.dtype) if case.lse_grad else None
    actual = gradients(inputs, out, lse, dout, dlse)
    expected = gradients(exact, exact_out, exact_lse, dout, dlse)
    unfused = gradients(plain, plain_out, plain_lse, dout, dlse)
    for name, gradient in actual.items():
        leaf, noise = inputs.leaves[name], 0.0
        assert gradient.dtype == leaf.dtype
        if name == "bias" and leaf.shape[-1] == 1:
            # Softmax ignores what is added to a whole row, so the gradient of such a bias is 0 but for sinks, masks
            # and lse, and what remains is the rounding of out, which backward starts from, and of the sums over keys,
            # added up over all rows: a random walk of that step, given eight standard deviations.
            noise = 8 * torch.finfo(case.dtype).eps * float((exact_out.detach() * dout).norm())
        if name in ("q", "k"):
            noise = score_noise(case, inputs, name, (exact_out * dout).detach())
        if name == "sinks":
            noise = sink_noise(case, leaf.detach(), (exact_out * dout).detach(), exact_lse.detach())
        assert_accurate(f"d{name}", gradient, expected[name], unfused[name], context, noise)


def score_noise(case: Case, inputs: Inputs, name: str, products: Tensor) -> float:
    """Noise of dq or dk: every dscore of a row lacks p times the same sum of out · dout, with out as it was rounded.

    A uniform step of a unit in the last place an element, given four standard deviations; the p of a row sum to 1, so
    the largest key, or for dk the largest query times the rows that meet, bounds the rest. ``products`` are out · dout.
    """
    other = inputs.k if name == "q" else inputs.q
    rows = products.norm(dim=-1)
    walk = largest(rows) if name == "q" else float(rows.norm())
    scale = abs(inputs.options.get("scale") or case.head_dim**-0.5)
    return 4 / 12**0.5 * torch.finfo(case.dtype).eps * walk * scale * largest(other)


def sink_noise(case: Case, sinks: Tensor, products: Tensor, lse: Tensor) -> float:
    """Noise of the sinks' gradient, which is -sum of p_sink · out · dout over rows and head dim.

    Backward starts from out as it was rounded, by up to half a unit in the last place: a random walk of uniform steps,
    given eight standard deviations. ``products`` are out · dout.
    """
    rows = products.norm(dim=-1)
    rows = rows.transpose(-1, -2) if case.layout == "bshd" else rows  # (..., heads, rows), as lse
    weights = torch.where(lse.isfinite(), torch.exp(sinks.double()[:, None] - lse), 0)
    squares = (weights * rows).square().sum(-1)
    walk = squares.reshape(-1, squares.shape[-1]).sum(0).sqrt()  # of each head
    return 8 / 12**0.5 * torch.finfo(case.dtype).eps * largest(walk)
