"""The NPU's kernels through the contract double: contract-verified, not hardware-verified."""

from __future__ import annotations

from pathlib import Path

import torch

import faops
from faops import profile
from tests.npu.support import ascend
from tests.profile.support import CPU


def test_training_on_an_npu_is_fused_and_makes_its_mask_once(tmp_path: Path) -> None:
    q, k, v = (torch.randn(1, 129, 2, 64, dtype=torch.float16, requires_grad=True) for _ in range(3))
    with ascend(version="2.13.0"):
        timeline = profile.record(
            lambda: faops.attention(q, k, v, causal=True).sum().backward(), CPU, tmp_path, steps=2, warmup=1
        )
    report = profile.analyse(timeline)
    assert report.verdict == "fused" and report.passed(strict=True), report
    assert sorted(row.calls for row in report.rows) == [2, 2]
    assert all(row.name.startswith("npu::npu_fusion_attention") for row in report.rows)
    assert all("called by npu.fusion_" in row.label for row in report.rows)
