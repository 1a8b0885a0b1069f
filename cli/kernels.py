"""`faops kernels`: every registered kernel."""

from __future__ import annotations

from dataclasses import asdict
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
@click.option("--defaults", is_flag=True, help="List the shipped default configs for the device, and their origin.")
@json_option
def command(device: str | None, defaults: bool, as_json: bool) -> None:
    """List every registered kernel, and backends that could not be loaded with their reason.

    Whether a kernel runs on the device, and how many configs tuning may choose from, is said for a plain problem:
    causal, batch 1, 1024 keys, 8 heads, head dim 64, in float32 on a CPU and float16 elsewhere; packed (varlen) for
    a kernel that takes nothing else.

    \b
    Examples:
      faops kernels
      faops kernels --device t4
      faops kernels --device h200 --defaults
      faops kernels --json
    """
    from faops import registry

    where = profile(device)
    if defaults:
        _print_defaults(where, as_json)
        return
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


def _print_defaults(where: DeviceProfile, as_json: bool) -> None:
    from faops import defaults, registry

    running = [kernel for kernel in registry.kernels() if not _describe(kernel, where)["reasons"]]
    rows = [row for kernel in running for row in defaults.table().get(kernel.id, ()) if row.serves(where)]
    if as_json:
        documents = [
            {"kernel": row.kernel, "scope": row.scope(), "config": dict(row.config), "origin": row.words(where),
             "note": row.note, "provenance": asdict(row.provenance)}
            for row in rows
        ]  # fmt: skip
        print_json("kernels", device=where.as_dict(), defaults=documents)
        return
    print_line(f"device {where.name} ({where.arch})")
    if not rows:
        print_line("every kernel that runs on this device chooses its default by rule")
        return
    print_table(
        ("kernel", "problems", "config", "note"),
        [(row.kernel, row.scope(), ", ".join(f"{k}={v}" for k, v in row.config.items()), row.note) for row in rows],
    )
    for words in dict.fromkeys(f"{row.kernel}: {row.words(where)}" for row in rows):
        print_line(words)


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
