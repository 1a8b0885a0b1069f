"""`faops tune --dry-run`: what would be measured and how long it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..output import print_json, print_line, print_table, seconds

if TYPE_CHECKING:
    from faops.problem import AttentionProblem

    from .workload import Target


def dry_run(problems: list[AttentionProblem], where: Target, force: bool, strategy: str, as_json: bool) -> None:
    """Print the estimate for each problem. Nothing is measured or written."""
    from faops.autotune import tuner
    from faops.device import DeviceProfile

    estimates = tuner.estimate(problems, where, force=force, strategy=strategy)
    name = where.name if isinstance(where, DeviceProfile) else str(where)
    if as_json:
        rows = [{**row, "problem": row["problem"].as_dict(), "key": row["problem"].key()} for row in estimates]
        print_json("tune", dry_run=True, device=name, strategy=strategy, problems=rows)
        return
    print_table(("problem", "to time", "of configs", "pruned", "about", "status"), [_row(row) for row in estimates])
    for row in estimates:
        if row["message"]:
            print_line(f"\n{row['message']}")
    todo = [row for row in estimates if row["status"] == "to tune"]
    total = sum(row["seconds"] for row in todo)
    print_line(f"\n{len(todo)} of {len(estimates)} problems to tune, about {seconds(total)}; nothing was measured")


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    if row["status"] != "to tune":
        return row["problem"], "-", "-", "-", "-", row["status"]
    return row["problem"], row["configs"], row["legal"], row["pruned"], seconds(row["seconds"]), row["status"]
