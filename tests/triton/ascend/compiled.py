"""Compiles the Ascend kernel with triton-ascend in a process of its own, and runs what comes out on NumPy arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from faops import reference
from faops.backends.triton.ascend import forward
from faops.backends.triton.ascend.gates.cases import Case
from faops.backends.triton.ascend.gates.linalg import parse
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands
from faops.problem import AttentionProblem
from tests.support import cumulative, random_lengths, random_mask
from tests.triton.ascend.executor import run

ROOT = Path(__file__).parents[3]
TRITON_ASCEND = ROOT / ".venv" / "triton-ascend"
TOLERANCE = {torch.float16: 2e-3, torch.float32: 2e-5}


def python_path() -> str:
    """Python's path on which `import triton` gives triton-ascend. Skips the test where there is none."""
    if not (TRITON_ASCEND / "triton" / "backends" / "ascend").is_dir():
        pytest.skip("NOT TESTED, nothing was compiled for Ascend: triton-ascend is missing (make triton-ascend)")
    return os.pathsep.join([str(TRITON_ASCEND), str(ROOT)])


def gates(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the gates' command, with triton-ascend on Python's path unless another one is given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment["PYTHONPATH"] = python_path() if path is None else path
    command = [sys.executable, "-m", "faops.backends.triton.ascend.gates", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def compile_cases(cases: Sequence[Case], folder: Path) -> dict[Case, str]:
    """The linalg of each case, which are of one head dim and dtype."""
    features = [part for case in cases for part in ("--feature", case.feature)]
    size = ["--head-dim", str(cases[0].head_dim), "--dtype", cases[0].dtype]
    done = gates(*features, *size, "--write", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return {case: (folder / f"{case}.mlir").read_text() for case in cases}


def execute(case: Case, text: str, seqlen_q: int, seqlen_k: int) -> None:
    """Run a compiled case on random inputs of these lengths, and hold out and lse to the oracle."""
    inputs = inputs_of(case.problem, seqlen_q, seqlen_k)
    out, lse = empty_out(inputs.q, inputs.v.shape[-1]), empty_lse(inputs.q)
    operands = forward.suited(Operands.of(inputs, out, lse if inputs.need_lse else None))
    launch = forward.describe(inputs, operands, case.config)
    assert launch.constants == case.launch()[0].constants, "calls of these lengths are compiled otherwise"
    values = {**operands._asdict(), **launch.numbers}
    arrays = {name: flat(values[name]) for name in text.splitlines()[0].split()[1:]}
    arrays["out"].fill(np.nan)
    if inputs.need_lse:
        arrays["lse"].fill(np.nan)
    run(parse(text), list(arrays.values()), launch.grid[0])
    exact, exact_lse = oracle(inputs)
    tolerance = TOLERANCE[inputs.q.dtype]
    found = torch.from_numpy(arrays["out"]).reshape(exact.shape).double()
    torch.testing.assert_close(found, exact, atol=tolerance, rtol=tolerance)
    if inputs.need_lse:
        found_lse = torch.from_numpy(arrays["lse"]).reshape(exact_lse.shape).double()
        torch.testing.assert_close(found_lse, exact_lse, atol=1e-5, rtol=1e-5)


def flat(value: Any) -> Any:
    """A tensor as the memory it lies in: every case's are contiguous."""
    if not isinstance(value, Tensor):
        return value
    assert value.is_contiguous()
    return value.detach().reshape(-1).numpy().copy()


def inputs_of(problem: AttentionProblem, seqlen_q: int, seqlen_k: int) -> AttentionInputs:
    """Random inputs of a problem but for its lengths; a packed batch has an empty sequence and rows behind the last."""
    batch, heads, heads_kv = problem.batch, problem.heads_q, problem.heads_kv
    rows: tuple[int, ...] = (batch, seqlen_q)
    keys: tuple[int, ...] = (batch, seqlen_k)
    ends: list[Tensor | None] = [None, None]
    if problem.layout == "varlen":
        ends = [cumulative(random_lengths(batch, longest)) for longest in (seqlen_q, seqlen_k)]
        rows, keys = (int(ends[0][-1]) + 7,), (int(ends[1][-1]),)  # type: ignore[index]
    sizes = dict(zip("bhmn", (batch, heads, seqlen_q, seqlen_k)))

    def of_pairs(pattern: str) -> tuple[int, ...]:
        return tuple(sizes[axis] if letter == axis else 1 for letter, axis in zip(pattern, "bhmn"))

    dtype = problem.torch_dtype
    return AttentionInputs(
        q=torch.randn(*rows, heads, problem.head_dim).to(dtype),
        k=torch.randn(*keys, heads_kv, problem.head_dim).to(dtype),
        v=torch.randn(*keys, heads_kv, problem.head_dim_v).to(dtype),
        alibi_slopes=torch.rand(heads) * 0.3 if problem.alibi else None,
        bias=torch.randn(of_pairs(problem.bias)).to(dtype) if problem.bias else None,
        mask=random_mask(of_pairs(problem.mask)) if problem.mask else None,
        sinks=torch.randn(heads).to(dtype) + 1 if problem.sinks else None,
        cu_seqlens_q=ends[0],
        cu_seqlens_k=ends[1],
        rng=None,
        max_seqlen_q=seqlen_q,
        max_seqlen_k=seqlen_k,
        window_left=problem.band.left,
        window_right=problem.band.right,
        scale=problem.head_dim**-0.5,
        softcap=1.5 if problem.softcap else 0.0,
        dropout_p=0.0,
        deterministic=False,
        need_lse=problem.need_lse,
        backend="",
    )


def oracle(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """(out, lse) in float64; rows behind the last sequence have out 0 and lse -inf."""
    options = {
        "window": (inputs.window_left, inputs.window_right), "softcap": inputs.softcap, "bias": inputs.bias,
        "alibi_slopes": inputs.alibi_slopes, "mask": inputs.mask, "sinks": inputs.sinks, "dtype": torch.float64,
    }  # fmt: skip
    q, k, v, ends = inputs.q, inputs.k, inputs.v, inputs.cu_seqlens_q
    if ends is None:
        return reference.attention(q, k, v, **options)
    out, lse = reference.attention_varlen(q, k, v, ends, inputs.cu_seqlens_k, **options)
    behind = q.shape[0] - out.shape[0]
    return functional.pad(out, (0, 0, 0, 0, 0, behind)), functional.pad(lse, (0, behind), value=-torch.inf)
