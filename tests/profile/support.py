"""Helpers of the tests of faops.profile: recordings of this process, and traces written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faops import profile
from faops.profile import Report

SAMPLES = Path(__file__).parent / "samples"
CPU = torch.device("cpu")


def shown(program: Callable[[], object], folder: Path, steps: int = 2) -> Report:
    """What a recording of ``program`` on the CPU shows."""
    return profile.analyse(profile.record(program, CPU, folder, steps=steps))


def heads_first(*shape: int, count: int = 3, grad: bool = False) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=grad) for _ in range(count)]


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Attention as models without a fused kernel write it; (B, H, M, D) tensors."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    return torch.dropout(torch.softmax(scores, dim=-1), dropout, True) @ v


def operator(name: str, start: float, end: float, number: int, *shapes: Sequence[int], dtype: str = "c10::Half",
             thread: int = 1, **more: Any) -> dict[str, Any]:  # fmt: skip
    """An operator of a trace, as torch.profiler writes one; times in microseconds."""
    arguments = {"External id": number, "Input Dims": [list(shape) for shape in shapes]}
    arguments |= {"Input type": [dtype] * len(shapes), "Input Strides": [contiguous(shape) for shape in shapes], **more}
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 7, "tid": thread, "ts": start, "dur": end - start,
            "args": arguments}  # fmt: skip


def kernel(name: str, start: float, duration: float, number: int | None = None, stream: int = 7) -> dict[str, Any]:
    """A kernel of a GPU, launched by the operator of that number."""
    arguments = {"device": 0, "stream": stream} | ({} if number is None else {"External id": number})
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": stream, "ts": start, "dur": duration,
            "args": arguments}  # fmt: skip


def contiguous(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def written(path: Path, entries: list[dict[str, Any]]) -> Path:
    """A trace file with these entries."""
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": entries}), encoding="utf-8")
    return path


def read(path: Path, *entries: dict[str, Any]) -> Report:
    """What a trace with these entries shows."""
    return profile.analyse(profile.read(written(path / "written.json", list(entries))))
