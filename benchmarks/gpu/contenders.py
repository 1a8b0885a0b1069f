"""What the timing section compares: both kernel families, faops' public call, and PyTorch's kernels."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import faops
from benchmarks.gpu.attention import DTYPES, FAMILIES
from benchmarks.harness import Candidate, Phases
from faops.backends.cuda_raw.launch import launch
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.device import detect
from faops.errors import FaopsError
from faops.inputs import AttentionInputs
from faops.layout import empty_out
from faops.operands import Operands
from faops.problem import DTYPES as TORCH_DTYPES
from faops.registry import Config

DEVICE = "cuda"
TOKENS = 16384  # of all sequences together
WIDTH = 2048  # heads times head dim
MIN_TIMED = 1e-3  # seconds between two events, so that their own cost and the host's disappear
MAX_CALLS = 50
MAX_SETS = 8

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, M, H, D) each, as a projection leaves them


@dataclass(frozen=True)
class Shape:
    """A timed forward: self-attention over sequences of ``tokens`` tokens, TOKENS of them in all."""

    tokens: int
    head_dim: int
    causal: bool
    dtype: str

    @property
    def batch(self) -> int:
        return max(1, TOKENS // self.tokens)

    @property
    def heads(self) -> int:
        return WIDTH // self.head_dim

    @property
    def flops(self) -> float:
        """4 B H M N D, half of it under causal."""
        return 4.0 * self.batch * self.heads * self.tokens**2 * self.head_dim / (2 if self.causal else 1)

    def __str__(self) -> str:
        return f"{self.tokens} d{self.head_dim} {'causal' if self.causal else 'full'} {self.dtype}"

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        size = (self.batch, self.tokens, self.heads, self.head_dim)
        q, k, v = (torch.randn(size, device=DEVICE, dtype=TORCH_DTYPES[self.dtype]) for _ in range(3))
        return q, k, v

    def draw_sets(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Enough inputs that a round does not find them in the L2 cache."""
        each = 3 * self.batch * self.tokens * WIDTH * 2
        wanted = math.ceil(2 * detect(DEVICE).l2_bytes / each)
        return [self.draw() for _ in range(max(2, min(MAX_SETS, wanted)))]


def all_of(shape: Shape) -> dict[str, Call]:
    """All that could run ``shape``, by name; whether they do shows when they are called."""
    found: dict[str, Call] = {
        name: direct(name, shape) for name in FAMILIES if TORCH_DTYPES[shape.dtype] in DTYPES[name]
    }
    found["faops"] = functools.partial(faops.attention, causal=shape.causal)
    for name, backend in (
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    ):
        found[name] = functools.partial(_sdpa, backend, shape.causal)
    found["flex"] = functools.partial(_flex, shape.causal)
    return found


def direct(name: str, shape: Shape, config: Config | None = None) -> Call:
    """A family's kernel with its default config, or ``config``, past the dispatcher."""
    family = FAMILIES[name]
    kernels: dict[int, Specialised] = {}  # by what the alignment of q allows

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inputs = AttentionInputs(
            q, k, v, None, None, None, None, None, None, None, shape.tokens, shape.tokens, -1,
            0 if shape.causal else -1, shape.head_dim**-0.5, 0.0, 0.0, False, False, "",
        )  # fmt: skip
        out = empty_out(q, v.shape[-1])
        operands = Operands.of(inputs, out, None)
        kernel = kernels.get(q.data_ptr() & 15)
        if kernel is None:
            chosen = config or family.tiles(inputs.problem(), detect(q.device))
            kernel = kernels[q.data_ptr() & 15] = specialise(family.family, inputs, operands, chosen)
        launch(kernel, operands)
        return out

    return call


def _sdpa(backend: SDPBackend, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal)
    return out.transpose(1, 2)


def _flex(causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = _block_mask(q.shape[1]) if causal else None
    out: Tensor = _compiled_flex()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask)
    return out.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)


@functools.cache
def _block_mask(tokens: int) -> object:
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    return flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=DEVICE)


def timed(call: Call, sets: Sequence[tuple[Tensor, Tensor, Tensor]], calls: int) -> Candidate:
    """A candidate that makes ``calls`` calls between two events, each on the next inputs."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def run() -> Phases:
        torch.cuda.synchronize()
        start.record()
        for number in range(calls):
            call(*sets[number % len(sets)])
        end.record()
        end.synchronize()
        return {"call": start.elapsed_time(end) * 1e-3 / calls}

    return run


def calls_for(call: Call, sets: Sequence[tuple[Tensor, Tensor, Tensor]]) -> int:
    """How many calls take MIN_TIMED together."""
    seconds = timed(call, sets, 2)()["call"]
    return max(1, min(MAX_CALLS, math.ceil(MIN_TIMED / seconds)))


def agreeing(
    calls: dict[str, Call], shape: Shape, tolerance: float
) -> tuple[dict[str, Call], dict[str, str], dict[str, float]]:
    """Those that run and agree with the float32 truth of one head, why the others do not, and the differences."""
    q, k, v = shape.draw()
    truth = _truth(q, k, v, shape.causal)
    good: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    differences: dict[str, float] = {}
    for name, call in calls.items():
        try:
            out = call(q, k, v)
            torch.cuda.synchronize()
        except (RuntimeError, FaopsError, ImportError, AssertionError) as error:
            reasons[name] = f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        difference = float((out[-1, :, -1].float() - truth).norm() / truth.norm())
        differences[name] = difference
        if difference <= tolerance:  # not for NaN
            good[name] = call
        else:
            reasons[name] = f"its result differs by {difference:.2g}, at most {tolerance:g} is allowed"
    return good, reasons, differences


def _truth(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The last head of the last batch entry, in float64."""
    q, k, v = (tensor[-1, :, -1].double() for tensor in (q, k, v))
    scores = q @ k.T * q.shape[-1] ** -0.5
    if causal:
        rows = torch.arange(scores.shape[0], device=q.device)
        scores.masked_fill_(rows[None, :] > rows[:, None], -torch.inf)
    result: Tensor = (scores.softmax(-1) @ v).float()
    return result
