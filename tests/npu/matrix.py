"""Runs a call of the matrix twice and says what became of it: through the npu kernels alone, and unasked.

No feature may be dropped in silence: either the npu kernels accept a call, and then it is right, or they refuse it with
a reason of every kernel, and then another backend's kernel computes it, as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from faops import execute, registry
from faops.dispatch import Plan
from faops.errors import NoKernelError

BACKEND = "npu"


@contextmanager
def operators_before_tiles() -> Iterator[list[tuple[str, str]]]:
    """Gives the list of (op, kernel id) of every launch meanwhile. What the operators refuse goes to the torch kernels:
    kernels for Ascend in Triton would be interpreted here, which takes long and is tested elsewhere.
    """
    launches: list[tuple[str, str]] = []
    run = execute.run

    def recorded(plan: Plan, inputs: Any, like: Any) -> Any:
        launches.append((plan.kernel.op, plan.kernel.id))
        return run(plan, inputs, like)

    triton = [kernel for kernel in registry.kernels() if kernel.backend == "triton"]
    for kernel in triton:
        registry.unregister(kernel.id)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execute, "run", recorded)
            yield launches
    finally:
        for kernel in triton:
            registry.register(kernel)


def refusal(call: Callable[[str | None], None]) -> str:
    """Hold ``call`` (of a backend) to its accuracy rule, by npu kernels alone and by whichever kernels.

    Returns which op was refused by the npu kernels ("" for none), once it is sure that every one of them gave a
    reason, that nothing but npu kernels ran where they accepted, and that others ran only where one was refused.
    """
    with operators_before_tiles() as forced:
        refused = _refused(call)
    assert all(kernel.startswith(f"{BACKEND}.") for _, kernel in forced), forced
    with operators_before_tiles() as free:
        call(None)
    assert refused or forced
    for op, kernel in free:
        on_npu = kernel.startswith(f"{BACKEND}.")
        assert on_npu != (op == refused) or (refused == "forward" and op == "backward"), f"{kernel}, refused: {refused}"
    return refused


def _refused(call: Callable[[str | None], None]) -> str:
    """The op that the npu kernels refuse, each of them with a reason; "" where they accept."""
    try:
        call(BACKEND)
    except NoKernelError as error:
        refused = error
    else:
        return ""
    kernels = {kernel.id for kernel in registry.kernels(refused.problem.op) if kernel.backend == BACKEND}
    assert kernels == set(refused.rejections) and all(refused.rejections.values()), str(refused)
    return refused.problem.op
