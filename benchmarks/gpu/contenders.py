"""What the timing section compares: our kernels, faops' public call, and PyTorch's kernels, forward."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import faops
from benchmarks.gpu.attention import DTYPES, FAMILIES
from benchmarks.gpu.racing import Contender, Work
from benchmarks.gpu.triton_calls import kernel_of
from faops.backends.cuda_raw.launch import launch
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.device import detect
from faops.inputs import AttentionInputs
from faops.layout import empty_out
from faops.operands import Operands
from faops.problem import DTYPES as TORCH_DTYPES
from faops.problem import AttentionProblem, Band, Op
from faops.registry import Config

DEVICE = "cuda"
TOKENS = 16384  # of all sequences together
WIDTH = 2048  # heads times head dim
MAX_SETS = 8

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, M, H, D) each, as a projection leaves them
PEERS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Shape:
    """A timed call: self-attention over sequences of ``tokens`` tokens, TOKENS of them in all."""

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
        """Of a forward: 4 B H M N D, half of it under causal."""
        return 4.0 * self.batch * self.heads * self.tokens**2 * self.head_dim / (2 if self.causal else 1)

    def __str__(self) -> str:
        return f"{self.tokens} d{self.head_dim} {'causal' if self.causal else 'full'} {self.dtype}"

    def as_dict(self) -> dict[str, object]:
        return {"tokens": self.tokens, "head_dim": self.head_dim, "causal": self.causal, "dtype": self.dtype,
                "batch": self.batch, "heads": self.heads, "flops": self.flops}  # fmt: skip

    def problem(self, op: Op = "forward") -> AttentionProblem:
        return AttentionProblem(
            op, self.dtype, batch=self.batch, seqlen_q=self.tokens, seqlen_k=self.tokens, heads_q=self.heads,
            heads_kv=self.heads, head_dim=self.head_dim, head_dim_v=self.head_dim,
            band=Band(right=0 if self.causal else -1), need_lse=op == "backward",
        )  # fmt: skip

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.draw_one() for _ in range(3))
        return q, k, v

    def draw_one(self, device: torch.device | str = "") -> Tensor:
        size = (self.batch, self.tokens, self.heads, self.head_dim)
        return torch.randn(size, device=device or DEVICE, dtype=TORCH_DTYPES[self.dtype])

    def sets(self) -> int:
        """How many inputs a round takes turns with, so that it does not find them in the L2 cache."""
        each = 3 * self.batch * self.tokens * WIDTH * 2
        return max(2, min(MAX_SETS, math.ceil(2 * detect(DEVICE).l2_bytes / each)))

    def draw_sets(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [self.draw() for _ in range(self.sets())]

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, need_lse: bool = False) -> AttentionInputs:
        """The call as a kernel's launch gets it."""
        return AttentionInputs(
            q, k, v, None, None, None, None, None, None, None, self.tokens, self.tokens, -1, 0 if self.causal else -1,
            self.head_dim**-0.5, 0.0, 0.0, False, need_lse, "",
        )  # fmt: skip


def all_of(shape: Shape) -> dict[str, Contender]:
    """All that could run ``shape`` forward, by name; whether they do shows when they are called."""
    calls: dict[str, Call] = {
        name: direct(name, shape) for name in FAMILIES if TORCH_DTYPES[shape.dtype] in DTYPES[name]
    }
    if has_triton(shape):
        calls["triton"] = triton_direct(shape)
    calls["faops"] = functools.partial(faops.attention, causal=shape.causal)
    return {name: work_of(call) for name, call in {**calls, **peers(shape)}.items()}


def work_of(call: Call) -> Contender:
    """The contender whose work is a whole call."""

    def make(*tensors: Tensor) -> Work:
        return lambda: call(*tensors)

    return make


def has_triton(shape: Shape) -> bool:
    return bool(kernel_of("forward").check(shape.problem(), detect(DEVICE)))


def direct(name: str, shape: Shape, config: Config | None = None) -> Call:
    """The kernel of a raw CUDA family with its default config, or ``config``, past the dispatcher."""
    family = FAMILIES[name]
    kernels: dict[int, Specialised] = {}  # by what the alignment of q allows

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inputs = shape.inputs(q, k, v)
        out = empty_out(q, v.shape[-1])
        operands = Operands.of(inputs, out, None)
        kernel = kernels.get(q.data_ptr() & 15)
        if kernel is None:
            chosen = config or family.tiles(inputs.problem(), detect(q.device))
            kernel = kernels[q.data_ptr() & 15] = specialise(family.family, inputs, operands, chosen)
        launch(kernel, operands)
        return out

    return call


def triton_direct(shape: Shape, config: Config | None = None) -> Call:
    """The Triton kernel, likewise."""
    kernel = kernel_of("forward")
    chosen = config or kernel.default_config(shape.problem(), detect(DEVICE))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = kernel.launch(shape.inputs(q, k, v), chosen)[0]
        return out

    return call


def peers(shape: Shape) -> dict[str, Call]:
    """PyTorch's kernels; they may be differentiated."""
    found: dict[str, Call] = {name: functools.partial(sdpa, backend, shape.causal) for name, backend in PEERS.items()}
    return {**found, "flex": functools.partial(flex, shape.causal)}


def sdpa(backend: SDPBackend, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA; keys and values may have fewer heads."""
    grouped = k.shape[2] != q.shape[2]
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal, enable_gqa=grouped
        )
    return out.transpose(1, 2)


def flex(causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = _block_mask(q.shape[1]) if causal else None
    grouped = k.shape[2] != q.shape[2]
    out: Tensor = _compiled_flex()(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=grouped
    )
    return out.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    # A backward that is timed runs again and again from the same buffers.
    importlib.import_module("torch._functorch.config").donated_buffer = False
    importlib.import_module("torch._dynamo.config").cache_size_limit = 1000  # a compilation a shape
    module = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(module.flex_attention, dynamic=False, fullgraph=True)


@functools.cache
def _block_mask(tokens: int) -> object:
    module = importlib.import_module("torch.nn.attention.flex_attention")
    return module.create_block_mask(lambda b, h, i, j: i >= j, None, None, tokens, tokens, device=DEVICE)


def truth(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The last head of the last batch entry, computed in float64."""
    probabilities, v = probabilities_of(q, k, causal), _last(v)
    result: Tensor = (probabilities @ v).float()
    return result


def probabilities_of(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """float64 (M, N) of the last head of the last batch entry."""
    q, k = _last(q), _last(k)
    scores = q @ k.T * q.shape[-1] ** -0.5
    if causal:
        rows = torch.arange(scores.shape[0], device=q.device)
        scores.masked_fill_(rows[None, :] > rows[:, None], -torch.inf)
    return scores.softmax(-1)


def gradient_truth(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of the same head."""
    probabilities = probabilities_of(q, k, causal)
    q, k, v, dout = (_last(tensor) for tensor in (q, k, v, dout))
    dv = probabilities.T @ dout
    grown = dout @ v.T
    grown -= (grown * probabilities).sum(-1, keepdim=True)
    grown *= probabilities
    scale = q.shape[-1] ** -0.5
    return (grown @ k * scale).float(), (grown.T @ q * scale).float(), dv.float()


def _last(tensor: Tensor) -> Tensor:
    return tensor[-1, :, -1].double()
