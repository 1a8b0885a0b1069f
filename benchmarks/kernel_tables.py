"""Tables of what is known of the kernels without a GPU: compile and launch times, instruction counts, traffic."""

from __future__ import annotations

from statistics import median
from typing import Any

Result = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # heading and rows


def compile_time(result: Result) -> Table:
    """Of benchmarks.compile_time."""
    heading = ("kernel", "cold", "from disk", "in memory", "cubin")
    rows = [
        (
            case["kernel"],
            f"{median(case['cold_s']):.2f} s",
            f"{median(case['warm_s']) * 1e3:.2f} ms",
            f"{median(case['memory_s']) * 1e6:.1f} µs",
            f"{case['bytes'] / 1024:.0f} KiB",
        )
        for case in result["cases"]
    ]
    return heading, rows


def instructions(result: Result) -> Table:
    """Of benchmarks.instructions, for whole tiles."""
    heading = ("kernel", "head dim", "tile", "warps", "HMMA per FLOP", "wavefronts per HMMA", "instructions per HMMA")
    rows = [
        (
            kernel["kernel"],
            str(kernel["head_dim"]),
            "{} × {}".format(*kernel["tile"]),
            str(kernel["warps"]),
            f"1 / {1 / kernel['products_per_flop']:.0f}",
            f"{kernel['wavefronts_per_product']:.3f}",
            f"{kernel['instructions_per_product']:.2f}",
        )
        for kernel in result["kernels"]
    ]
    return heading, rows


def traffic(result: Result) -> Table:
    """Of benchmarks.traffic, in 1e9 bytes."""
    heading = ("card", "head dim", "mask", "faops", "each operand once", "unfused, float16", "unfused, float32")
    rows = [
        (
            case["card"],
            str(case["head_dim"]),
            "causal" if case["causal"] else "none",
            *(
                f"{figure / 1e9:.2f}"
                for figure in (
                    case["loaded"] + case["stored"],
                    case["least"],
                    case["unfused_float16"],
                    case["unfused_float32"],
                )
            ),
        )
        for case in result["cases"]
    ]
    return heading, rows


def triton_launch(result: Result) -> Table:
    """Of benchmarks.triton_launch, in microseconds a call: the shortest batch, and the median one."""
    heading = ("call", "Triton's own launch", "faops' launch", "whole call of the kernel")
    rows = [
        (
            found["case"]["name"],
            *(
                f"{found['calls'][name]['min'] * 1e6:.1f} ({found['calls'][name]['median'] * 1e6:.1f})"
                for name in ("triton", "launch", "call")
            ),
        )
        for found in result["cases"]
    ]
    return heading, rows
