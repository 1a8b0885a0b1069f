"""`faops kernels`: every registered kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .devices import profile
from .output import json_option, print_json, print_line, print_table

if TYPE_CHECKING:
    from faops.device import DeviceProfile
    from faops.problem import AttentionProblem
    from faops.registry import Kernel


@click.command("kernels", short_help="List every registered kernel.")
@click.option("--device", help="A device of this machine, or a known one: t4, h200... (default: cuda, npu or cpu).")
@json_option
def command(device: str | None, as_json: bool) -> None:
    """List every registered kernel, and backends that could not be loaded with their reason.

    Whether a kernel runs on the device, and how many configs tuning may choose from, is said for a plain problem:
    causal, batch 1, 1024 keys, 8 heads, head dim 64, in float32 on a CPU and float16 elsewhere; packed (varlen) for
    a kernel that takes nothing else.

    \b
    Examples:
      faops kernels
      faops kernels --device t4
      faops kernels --json
    """
    from faops import registry

    where = profile(device)
    rows = [_describe(kernel, where) for kernel in registry.kernels()]
    failures = registry.failures()
    if as_json:
        print_json("kernels", device=where.as_dict(), kernels=rows, failures=failures)
        return
    print_line(f"device {where.name} ({where.arch})")
    print_table(
        ("kernel", "op", "backend", "priority", "configs", f"plain problem on {where.family}"),
        [
            (*(row[name] for name in ("kernel", "op", "backend", "priority", "configs")), _verdict(row["reasons"]))
            for row in rows
        ],
    )
    for backend, reason in failures.items():
        print_line(f"backend {backend} could not be loaded: {reason}", style="red")


def _describe(kernel: Kernel, where: DeviceProfile) -> dict[str, Any]:
    from faops.registry import Rejected

    problems = _plain_problems(kernel, where)
    problem = next((problem for problem in problems if kernel.check(problem, where)), problems[0])
    decision = kernel.check(problem, where)
    return {
        "kernel": kernel.id,
        "op": kernel.op,
        "backend": kernel.backend,
        "priority": kernel.priority,
        "configs": len(kernel.configs(problem, where)) if decision else 0,
        "reasons": list(decision.reasons) if isinstance(decision, Rejected) else [],
    }


def _verdict(reasons: list[str]) -> str:
    return "\n".join(reasons) or "runs"


def _plain_problems(kernel: Kernel, where: DeviceProfile) -> list[AttentionProblem]:
    """Problems of the kernel's op that use no feature but causality: dense, and packed where there is such a thing."""
    from dataclasses import replace

    from faops.problem import AttentionProblem, Band

    rows = 1 if kernel.op == "decode" else 1024
    dense = AttentionProblem(
        op=kernel.op,
        dtype="float32" if where.family == "cpu" else "float16",
        seqlen_q=rows,
        seqlen_k=1024,
        heads_q=8,
        heads_kv=8,
        band=Band(right=0).simplify(rows, 1024),
        need_lse=kernel.op == "backward",
    )
    return [dense] if kernel.op == "decode" else [dense, replace(dense, layout="varlen")]
