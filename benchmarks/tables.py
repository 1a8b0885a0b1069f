"""Draws the tables of docs/benchmarks.md from the result files, so that no figure is typed by hand.

    python -m benchmarks.tables            rewrite the tables between the markers
    python -m benchmarks.tables --check    change nothing; exit with 1 if the page differs from the files

A table stands between ``<!-- table DEVICE NAME ARGUMENT... -->`` and ``<!-- end -->``, such as
``<!-- table cpu-xeon-avx512-2c cpu sdpa forward -->``. The argument "source" tells where a file's figures come from.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import decode_cpu, generation, kernel_tables, record
from benchmarks.cases import FEATURES
from faops.files import write_whole

PAGE = record.ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- table (?P<words>[^>]*?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
MIB = 2**20

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page differs from the result files")
    options = parser.parse_args(arguments)
    present = PAGE.read_text(encoding="utf-8")
    drawn = redraw(present, record.RESULTS)
    if options.check and drawn != present:
        print(f"{PAGE.name} differs from the result files; python -m benchmarks.tables redraws it", file=sys.stderr)
        return 1
    if drawn != present:
        write_whole(PAGE, drawn)
    return 0


def redraw(page: str, results: Path) -> str:
    """The page with every table drawn afresh from the files under ``results``."""

    def draw(found: re.Match[str]) -> str:
        device, name, *words = found["words"].split()
        if name not in TABLES:
            raise ValueError(f"table {found['words']!r}: unknown kind {name!r}, expected one of {', '.join(TABLES)}")
        path = results / device / f"{name}.json"
        body = "Not measured on this device.\n"
        if path.exists():
            result = record.read(path)
            body = source(result) if words == ["source"] else TABLES[name](result, *words)
        return f"{found[1]}\n{body}\n{found[4]}"

    return BLOCK.sub(draw, page)


def cpu(result: Result, *words: str) -> str:
    """Tables of benchmarks.cpu: "PEER MEASURE" for ratios, or "memory MEASURE"."""
    subject, measure = words
    draw = memory_cell if subject == "memory" else ratio_cell
    cells: dict[tuple[str, int], dict[tuple[str, int], str]] = {}  # row -> column -> text
    for found in result["cases"]:
        case = found["case"]
        if text := draw(found, subject, measure):
            column = (case["dtype"], case["head_dim"])
            cells.setdefault((case["feature"], case["tokens"]), {})[column] = text
    columns = sorted(
        {column for row in cells.values() for column in row}, key=lambda column: (column[0] != "float32", column)
    )
    order = list(FEATURES)
    rows = [
        [FEATURES[feature].title, f"{tokens:,}", *(row.get(column, "–") for column in columns)]
        for (feature, tokens), row in sorted(cells.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    return grid(["", "tokens", *(f"{dtype}, d {head_dim}" for dtype, head_dim in columns)], rows)


def ratio_cell(found: Result, peer: str, measure: str) -> str:
    """How many times as fast as ``peer`` faops is; bold where it misses its bar."""
    ratio = found["ratios"].get(peer, {}).get(measure)
    if ratio is None:
        return ""
    text = f"{ratio['of_pairs']:.2f}"
    return f"**{text}**" if ratio.get("verdict", "met") == "below" else text


def memory_cell(found: Result, subject: str, measure: str) -> str:
    """Peak memory of faops, and of each peer, in MiB."""
    parts = []
    for peer in ("faops", "sdpa", "flex"):
        peak = found["memory"].get(peer, {}).get(measure)
        parts.append("–" if peak is None else f"{peak / MIB:,.0f}")
    return " / ".join(parts) if parts[0] != "–" else ""


def host_time(result: Result, *words: str) -> str:
    """The table of benchmarks.host_time for a mode."""
    (mode,) = words
    heading = ["µs a call", "added by faops", "faops", "launch", "torch's operator", "SDPA", "autograd.Function"]
    rows = []
    for found in result["cases"]:
        if found["case"]["mode"] == mode:
            cells = [_microseconds(found["added"]["faops"], "of_minima", "of_medians")]
            for name in ("faops", "launch", "operator", "sdpa", "function"):
                cells.append(_microseconds(found["calls"].get(name), "min", "median"))
            rows.append([found["case"]["shape"], *cells])
    return grid(heading, rows)


def _microseconds(values: dict[str, float] | None, shortest: str, middle: str) -> str:
    return f"{values[shortest] * 1e6:.1f} ({values[middle] * 1e6:.1f})" if values else "–"


def tuning(result: Result) -> str:
    """The table of benchmarks.tuning."""
    heading = ["problem", "default", "tuned", "µs a call", "speed-up"]
    rows = []
    for found in result["cases"]:
        plans = [found[when]["plan"] for when in ("before", "after")]
        times = " → ".join(f"{found['calls'][name]['median'] * 1e6:,.0f}" for name in ("default", "tuned"))
        rows.append([found["case"], *map(_plan, plans), times, f"{found['speedup']['of_pairs']:.2f}"])
    return grid(heading, rows)


def _plan(plan: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in plan["config"].items())
    return f"{plan['kernel']} ({numbers})" if numbers else str(plan["kernel"])


def compile_time(result: Result) -> str:
    return grid(*kernel_tables.compile_time(result))


def instructions(result: Result) -> str:
    return grid(*kernel_tables.instructions(result))


def traffic(result: Result) -> str:
    return grid(*kernel_tables.traffic(result))


def triton_launch(result: Result) -> str:
    return grid(*kernel_tables.triton_launch(result))


TABLES: dict[str, Callable[..., str]] = {
    "cpu": cpu,
    "host_time": host_time,
    "tuning": tuning,
    "compile_time": compile_time,
    "instructions": instructions,
    "traffic": traffic,
    "triton_launch": triton_launch,
    "decode_cpu": lambda result, *words: grid(*decode_cpu.table(result, *words)),
    "generation": lambda result: grid(*generation.table(result)),
}


def source(result: Result) -> str:
    """Where the figures come from, in a sentence."""
    device, versions = result["device"], result["versions"]
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    return (
        f"{device['name']} ({device['arch']}), {result['threads']} threads; torch {versions['torch']}, "
        f"faops {versions['faops']} at {result['commit'][:12] or 'no commit'}{changed}; {result['date'][:10]}; "
        f"`{result['command']}`.\n"
    )


def grid(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
