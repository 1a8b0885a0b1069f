"""`faops explain`: which kernel runs a problem, with which config, and why."""

from __future__ import annotations

import click

from .cache.show import print_timings
from .devices import profile
from .output import json_option, print_json, print_line, print_pairs, print_table


@click.command("explain", short_help="Say which kernel runs a problem, and why.")
@click.option("--shape", required=True, metavar="S", help="The problem, such as b=1,sq=1024,sk=1024,h=32,hk=8,d=128.")
@click.option("--device", help="A device of this machine, or a known one: t4, h200... (default: cuda, npu or cpu).")
@click.option("--backend", default="", help="Force a backend, or a kernel by its id.")
@json_option
def command(shape: str, device: str | None, backend: str, as_json: bool) -> None:
    """Say which kernel runs a problem on a device, with which config, and why; and what every kernel says to it.

    Nothing is run, so the device need not be in this machine. S is a list of name=value: op, dtype, b (batch), sq and
    sk (query and key length), h and hk (query and key heads), d and dv (head dims), causal, window=LEFT:RIGHT,
    softcap, alibi, bias, mask, sinks, dropout, need_lse, layout, page_size and more.

    \b
    Examples:
      faops explain --shape sq=1024,h=8,d=64,causal=1
      faops explain --shape b=4,sq=4096,h=32,hk=8,d=128,dtype=bfloat16 --device h200
      faops explain --shape sq=1024,h=8,d=64,op=backward --backend torch.sdpa --json
    """
    from faops import dispatch
    from faops.autotune.cache import TuningCache
    from faops.problem import parse_shape

    where = profile(device)
    explanation = dispatch.explain(parse_shape(shape), where, backend)
    entry = TuningCache().load(where, explanation.problem)
    if as_json:
        print_json("explain", **explanation.as_dict(), tuned=entry.as_dict() if entry else None)
        return
    rows = [
        ("problem", str(explanation.problem)),
        ("key", explanation.problem.key()),
        ("device", f"{where.name} ({where.arch}, {where.units} units)"),
    ]
    plan = explanation.chosen
    if plan:
        rows += [("plan", f"{plan.kernel.id} [{plan.config}]"), ("because", plan.detail)]
        if plan.forced:
            rows.append(("forced", "yes"))
    else:
        rows.append(("no plan", explanation.error))
    print_pairs(rows)
    print_line()
    print_table(
        ("kernel", "verdict"),
        [(kernel.id, "\n".join(explanation.verdict(kernel, decision))) for kernel, decision in explanation.decisions],
    )
    if entry:
        print_line(f"\nmeasured on {entry.date}:")
        print_timings(entry)
