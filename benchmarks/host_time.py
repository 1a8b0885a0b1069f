"""Host time of a repeated call: what faops.attention() adds to the kernel launch under it.

    python -m benchmarks.host_time
    python -m benchmarks.host_time --quick      less repetition; the result goes to build/benchmarks

Shapes are so small that hardly anything but the host's work is left. Beside faops: the launch alone
(``plan.kernel.launch`` with its inputs ready), PyTorch's operator alone, F.scaled_dot_product_attention, and a
torch.autograd.Function around the same operator, as packages of attention kernels wrap theirs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import faops
from benchmarks import record
from benchmarks.harness import Effort, Samples, batch_of, interleave, summary
from faops import dispatch
from faops.api import _dense_arguments
from faops.device import detect
from faops.inputs import AttentionInputs, BackwardInputs

NAME = "host_time"
TARGET_SECONDS = 10e-6  # what a repeated call may add to the launch
BATCH_SECONDS = 400e-6  # of one batch of calls: short enough that many batches escape every disturbance
MODES = ("inference", "forward", "forward_backward")

Call = Callable[[], Any]

forward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
backward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class FlashFunction(torch.autograd.Function):
    """The usual wrapper of an attention kernel: saves q, k, v, out and lse. Tensors are (batch, heads, tokens, dim)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        out, lse = forward_op(q, k, v, 0.0, causal, scale=scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = backward_op(dout, q, k, v, out, lse, 0.0, ctx.causal, scale=ctx.scale)
        return dq, dk, dv, None, None


def flash_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention of (batch, tokens, heads, dim) tensors through FlashFunction."""
    apply: Any = FlashFunction.apply
    out: Tensor = apply(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal, q.shape[-1] ** -0.5)
    return out.transpose(1, 2)


@dataclass(frozen=True)
class Shape:
    """A tiny call: (1, tokens, heads, dim) of everything; ``peers``: SDPA can do the same."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int = 4
    heads: int = 2
    dim: int = 16
    peers: bool = True


def shapes() -> list[Shape]:
    slopes = torch.tensor([0.5, 0.25])
    return [
        Shape("plain"),
        Shape("causal", {"causal": True}),
        Shape("causal, layout bhsd", {"causal": True, "layout": "bhsd"}),
        Shape("causal, window 2", {"causal": True, "window": (2, 0)}, peers=False),
        Shape("causal, ALiBi", {"causal": True, "alibi_slopes": slopes}, peers=False),
    ]


def calls(shape: Shape, mode: str) -> dict[str, Call]:
    """What is compared for a shape. Modes: "inference" is under no_grad; in "forward" q, k and v want gradients;
    "forward_backward" makes them, too.
    """
    size = (1, shape.tokens, shape.heads, shape.dim)
    q, k, v, dout = (torch.randn(size) for _ in range(4))
    if mode != "inference":
        q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
    options = dict(shape.options)
    if heads_first := options.get("layout") == "bhsd":
        size = (1, shape.heads, shape.tokens, shape.dim)
        q, k, v, dout = (tensor.detach().transpose(1, 2).contiguous() for tensor in (q, k, v, dout))
        q, k, v = (tensor.requires_grad_(mode != "inference") for tensor in (q, k, v))
    causal = bool(options.get("causal", False))

    def whole(forward: Callable[[], Tensor], gradient: Tensor) -> Call:
        if mode != "forward_backward":
            return forward
        return lambda: torch.autograd.grad(forward(), (q, k, v), gradient)

    found: dict[str, Call] = {
        "faops": whole(lambda: faops.attention(q, k, v, **options), dout),
        "launch": launches(q, k, v, dout, options, mode),
    }
    if shape.peers:
        first = [tensor if heads_first else tensor.transpose(1, 2) for tensor in (q, k, v, dout)]
        found["operator"] = operators([tensor.detach() for tensor in first], causal, mode)
        qt, kt, vt, dt = first
        found["sdpa"] = whole(lambda: F.scaled_dot_product_attention(qt, kt, vt, is_causal=causal), dt)
        qs, ks, vs, ds = (tensor.transpose(1, 2) for tensor in first)
        found["function"] = whole(lambda: flash_func(qs, ks, vs, causal), ds)
    return found


def launches(q: Tensor, k: Tensor, v: Tensor, dout: Tensor, options: dict[str, Any], mode: str) -> Call:
    """The kernels that faops chooses, launched with their inputs ready."""
    need_lse = mode != "inference"
    with torch.enable_grad() if need_lse else torch.no_grad():
        inputs = AttentionInputs(*_dense_arguments(q, k, v, **options))
    inputs.q, inputs.k, inputs.v = (tensor.detach() for tensor in (inputs.q, inputs.k, inputs.v))
    device = detect("cpu")
    plan = dispatch.plan(inputs.problem(), device)
    forward, config = plan.kernel.launch, plan.config
    if mode != "forward_backward":
        return lambda: forward(inputs, config)
    if options.get("layout") == "bhsd":
        dout = dout.transpose(1, 2)
    out, lse = forward(inputs, config)
    gradients = BackwardInputs(dout, None, inputs, out, lse, False, False)
    backward_plan = dispatch.plan(gradients.problem(), device)
    backward, backward_config = backward_plan.kernel.launch, backward_plan.config

    def both() -> None:
        forward(inputs, config)
        backward(gradients, backward_config)

    return both


def operators(tensors: Sequence[Tensor], causal: bool, mode: str) -> Call:
    """PyTorch's operators alone; ``tensors`` are q, k, v and dout of shape (batch, heads, tokens, dim)."""
    q, k, v, dout = tensors
    scale = q.shape[-1] ** -0.5
    if mode != "forward_backward":
        return lambda: forward_op(q, k, v, 0.0, causal, scale=scale)
    out, lse = forward_op(q, k, v, 0.0, causal, scale=scale)

    def both() -> None:
        forward_op(q, k, v, 0.0, causal, scale=scale)
        backward_op(dout, q, k, v, out, lse, 0.0, causal, scale=scale)

    return both


def measure(shape: Shape, mode: str, effort: Effort) -> dict[str, Any]:
    """Seconds a call of every candidate, and what faops and the others add to the launch and to the operator."""
    with torch.no_grad() if mode == "inference" else torch.enable_grad():
        compared = calls(shape, mode)
        rounds = {}
        for name, call in compared.items():
            once = batch_of(call, 20)
            estimate = min(once()["call"] for _ in range(10))
            rounds[name] = batch_of(call, max(1, round(BATCH_SECONDS / estimate)))
        samples = interleave(rounds, effort)
    return {
        "case": {"shape": shape.name, "mode": mode, "tokens": shape.tokens, "heads": shape.heads, "dim": shape.dim},
        "calls": {name: summary(one["call"]) for name, one in samples.items()},
        "added": {
            name: added(samples, name, below)
            for name, below in (("faops", "launch"), ("sdpa", "operator"), ("function", "operator"))
            if name in samples
        },
    }


def added(samples: dict[str, Samples], call: str, below: str) -> dict[str, float]:
    """Seconds that ``call`` takes above ``below``: the difference of the shortest batches, and of the medians."""
    ours, theirs = samples[call]["call"], samples[below]["call"]
    return {
        "of_minima": round(min(ours) - min(theirs), 9),
        "of_medians": round(statistics.median(ours) - statistics.median(theirs), 9),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """A parallel region would add its own waiting to calls that have nothing to share out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_time", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="less repetition; the result goes to build/benchmarks")
    options = parser.parse_args(arguments)
    effort = (
        Effort(0.3, max_rounds=60, warmup_rounds=5) if options.quick else Effort(3.0, max_rounds=300, warmup_rounds=20)
    )
    os.environ["FAOPS_TUNING"] = "0"
    with one_thread():
        result = record.header(NAME, target_seconds=TARGET_SECONDS, batch_seconds=BATCH_SECONDS)
        result["cases"] = []
        print(
            f"microseconds, shortest batch (median)\n{'':40}{'added by faops':>18}"
            + "".join(f"{name:>18}" for name in ("faops", "launch", "operator", "sdpa", "function"))
        )
        for mode in MODES:
            for shape in shapes():
                found = measure(shape, mode, effort)
                result["cases"].append(found)
                print(_line(found), flush=True)
    print(f"\n{record.write(result, options.quick)}")
    return 0


def _line(found: dict[str, Any]) -> str:
    difference = found["added"]["faops"]
    cells = [f"{difference['of_minima'] * 1e6:.1f} ({difference['of_medians'] * 1e6:.1f})"]
    for name in ("faops", "launch", "operator", "sdpa", "function"):
        one = found["calls"].get(name)
        cells.append(f"{one['min'] * 1e6:.1f} ({one['median'] * 1e6:.1f})" if one else "-")
    return f"{found['case']['mode'] + ': ' + found['case']['shape']:40}" + "".join(f"{cell:>18}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
