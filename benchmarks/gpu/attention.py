"""One attention call through a kernel of either family, on a runner, held to the accuracy rule of the tests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.runners import Runner
from faops.api import _draw_rng
from faops.backends.cuda_raw.forward import RawForward
from faops.backends.cuda_raw.sm75_forward import Sm75Forward
from faops.backends.cuda_raw.sm80_forward import Sm80Forward
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.device import DeviceProfile
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands
from faops.problem import UNLIMITED
from faops.registry import Config
from tests.support import Case, Inputs, assert_accurate, make_case, make_inputs, run_reference

FAMILIES: dict[str, RawForward] = {"sm80": Sm80Forward(), "sm75": Sm75Forward()}
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "sm80": (torch.float16, torch.bfloat16),
    "sm75": (torch.float16,),
}


@dataclass(frozen=True)
class Trial:
    """A random call with ``features`` (of :mod:`tests.support`) through a family; its default config where None."""

    family: str
    dtype: torch.dtype
    features: tuple[str, ...] = ()
    config: Config | None = None
    shape: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        shape = " ".join(f"{name}={size}" for name, size in self.shape.items())
        dtype = str(self.dtype).removeprefix("torch.")
        config = f" [{self.config}]" if self.config else ""
        return f"{self.family} {dtype} {'+'.join(self.features) or 'plain'} {shape}{config}"


@dataclass(frozen=True)
class Call:
    """A trial with its tensors, ready to launch; out and lse are poisoned."""

    case: Case
    tensors: Inputs  # on the CPU
    seed: int
    kernel: Specialised
    operands: Operands


def prepare(trial: Trial, device: torch.device, profile: DeviceProfile) -> Call:
    """Draw the call and specialise its kernel. The same trial gives the same call anywhere."""
    torch.manual_seed(trial.seed)
    random.seed(trial.seed)
    case = make_case(*trial.features, dtype=trial.dtype, **trial.shape)
    tensors = make_inputs(case)
    seed = random.getrandbits(31)
    inputs = attention_inputs(case, tensors, seed, device)
    out, lse = poison(empty_out(inputs.q, inputs.v.shape[-1])), poison(empty_lse(inputs.q))
    operands = Operands.of(inputs, out, lse)
    family = FAMILIES[trial.family]
    # The default config of the family's own problem, on whatever device: sm75 runs on newer cards too.
    config = trial.config or family.tiles(inputs.problem(), profile)
    return Call(case, tensors, seed, specialise(family.family, inputs, operands, config), operands)


def hold(trial: Trial, runner: Runner) -> dict[str, Any]:
    """Run the trial; raises AssertionError where it misses the accuracy rule."""
    call = prepare(trial, runner.device, runner.profile)
    runner.launch(call.kernel, call.operands)
    check_result(call, str(trial))
    return {}


def check_result(call: Call, context: str) -> None:
    """Hold out and lse of a call that ran to the accuracy rule: the oracle in float64, on the CPU."""
    exact, exact_lse = run_reference(call.case, call.tensors.fresh(torch.float64), torch.float64, call.seed)
    plain, plain_lse = run_reference(call.case, call.tensors.fresh(), call.case.dtype, call.seed)
    assert call.operands.lse is not None
    out, lse = call.operands.out.cpu(), call.operands.lse.cpu()
    if call.case.layout == "bhsd":
        out = out.transpose(-3, -2)
    assert_accurate("out", out, exact.detach(), plain.detach(), context)
    assert_accurate("lse", lse, exact_lse.detach(), plain_lse.detach(), context)


def attention_inputs(case: Case, tensors: Inputs, seed: int, device: torch.device) -> AttentionInputs:
    """The call as a kernel's launch gets it, on ``device``."""
    options: dict[str, Any] = {
        name: value.detach().to(device) if isinstance(value, Tensor) else value for name, value in case.options.items()
    }
    q, k, v = (tensor.detach().to(device) for tensor in (tensors.q, tensors.k, tensors.v))
    if case.layout == "bhsd":
        q, k, v = q.transpose(-3, -2), k.transpose(-3, -2), v.transpose(-3, -2)
    left, right = (UNLIMITED if side is None else side for side in options.get("window", (None, None)))
    dropout = options.get("dropout_p", 0.0)
    return AttentionInputs(
        q=q, k=k, v=v,
        alibi_slopes=options.get("alibi_slopes"), bias=options.get("bias"), mask=options.get("mask"),
        sinks=options.get("sinks"),
        cu_seqlens_q=None if tensors.cu_seqlens_q is None else tensors.cu_seqlens_q.to(device),
        cu_seqlens_k=None if tensors.cu_seqlens_k is None else tensors.cu_seqlens_k.to(device),
        # Drawn on the CPU, as the oracle draws it.
        rng=_draw_rng(torch.Generator().manual_seed(seed), torch.device("cpu")).to(device) if dropout else None,
        max_seqlen_q=case.seqlen_q, max_seqlen_k=case.seqlen_k,
        window_left=left, window_right=0 if options.get("causal") else right,
        scale=options.get("scale", case.head_dim**-0.5), softcap=options.get("softcap", 0.0), dropout_p=dropout,
        deterministic=options.get("deterministic", False), need_lse=True, backend="",
    )  # fmt: skip


def poison(tensor: Tensor) -> Tensor:
    """``tensor`` filled with NaN, which every accuracy check finds."""
    return tensor.fill_(torch.nan)
