"""Marks in a recording: which kernel of faops ran, for which problem, around the operators that it called.

A blockwise kernel looks like any other sequence of products and exponentials to a profiler. While a recording is made,
each launch of a kernel is therefore put in a range named ``faops::<kernel> <problem>``; otherwise nothing is changed
and nothing costs time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import record_function

from faops import dispatch, registry
from faops.errors import PlanError
from faops.problem import AttentionProblem, parse_shape
from faops.registry import Kernel

PREFIX = "faops::"


@contextmanager
def marks() -> Iterator[list[tuple[str, AttentionProblem]]]:
    """Mark every launch of a kernel within the block; gives the list of launches (kernel's id, problem), as it grows.

    Use it around a profiler of your own: ``with faops.profile.marks(), torch.profiler.profile(...) as profiler:``.
    """
    launches: list[tuple[str, AttentionProblem]] = []
    marked = [kernel for kernel in registry.kernels() if "launch" not in vars(kernel)]
    for kernel in marked:
        vars(kernel)["launch"] = _marked(kernel, kernel.launch, launches)
    dispatch.forget()  # repeated calls keep the launch that they found
    try:
        yield launches
    finally:
        for kernel in marked:
            vars(kernel).pop("launch", None)
        dispatch.forget()


def _marked(
    kernel: Kernel, launch: Callable[..., Any], launches: list[tuple[str, AttentionProblem]]
) -> Callable[..., Any]:
    def run(inputs: Any, config: Any) -> Any:
        problem = inputs.problem()
        launches.append((kernel.id, problem))
        with record_function(name_of(kernel.id, problem)):
            return launch(inputs, config)

    return run


def name_of(kernel: str, problem: AttentionProblem) -> str:
    """The range's name: the kernel, and the sizes of the problem in the language of `--shape`."""
    sizes = {
        "op": problem.op, "dtype": problem.dtype, "b": problem.batch, "sq": problem.seqlen_q, "sk": problem.seqlen_k,
        "h": problem.heads_q, "hk": problem.heads_kv, "d": problem.head_dim, "dv": problem.head_dim_v,
        "need_lse": int(problem.need_lse),
    }  # fmt: skip
    return f"{PREFIX}{kernel} {','.join(f'{name}={size}' for name, size in sizes.items())}"


def parse(name: str) -> tuple[str, AttentionProblem] | None:
    """Kernel and problem of a range's name; None for any other name."""
    kernel, _, shape = name.removeprefix(PREFIX).partition(" ")
    if not name.startswith(PREFIX) or not shape:
        return None
    try:
        return kernel, parse_shape(shape)
    except PlanError:
        return None
