"""(out, lse) is all that passes between forward and backward: a forward of any backend suits a backward of another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from faops import execute, registry
from faops.device import known
from faops.dispatch import Plan
from faops.registry import Kernel
from tests.cuda_raw.conftest import emulator_here, kernel_folder  # noqa: F401
from tests.support import check, make_case
from tests.triton.support import ATOMIC_TILES, BACKWARD_TILES, TILES

pytestmark = pytest.mark.usefixtures("poisoned")

FEATURES = [
    ("plain",),
    ("causal", "mqa", "lse_grad"),
    ("varlen", "window", "sinks", "dropout"),
    ("bias", "softcap", "alibi", "mask"),
]
COMBINATIONS = [
    ("triton.forward", "torch.blockwise_backward"),
    ("torch.blockwise_forward", "triton.backward"),
    ("cuda_raw.sm80_forward", "triton.backward"),
]


def get(kernel_id: str) -> Kernel:
    kernel = registry.get(kernel_id)
    assert kernel is not None
    return kernel


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Makes calls run one kernel forward and another backward; gives the list of those that ran."""

    def join(forward: str, backward: str) -> list[str]:
        ran: list[str] = []
        configs = {"triton.forward": TILES, "triton.backward": random.choice([BACKWARD_TILES, ATOMIC_TILES])}

        def run(plan: Plan, inputs: Any, like: torch.Tensor) -> Any:
            kernel = get(forward if plan.kernel.op == "forward" else backward)
            problem, device = inputs.problem(), known("a100" if kernel.backend == "cuda_raw" else "cpu")
            decision = kernel.check(problem, device)
            assert decision or kernel.backend == "cuda_raw", decision
            ran.append(kernel.id)
            config = configs.get(kernel.id) or kernel.default_config(problem, device)
            return kernel.launch(inputs, config)

        monkeypatch.setattr(execute, "run", run)
        return ran

    return join


@pytest.mark.parametrize("features", FEATURES, ids="+".join)
@pytest.mark.parametrize(("forward", "backward"), COMBINATIONS, ids=str)
def test_forward_of_one_and_backward_of_another(
    joined: Any, forward: str, backward: str, features: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    dtype = random.choice([torch.float16, torch.float32])
    if forward.startswith("cuda_raw"):
        request.getfixturevalue("emulator_here")
        request.getfixturevalue("monkeypatch").setenv("FAOPS_EMULATE", "a100")
        dtype = torch.float16
    shape = {"seqlen_q": random.randint(17, 40), "seqlen_k": random.randint(33, 60), "head_dim": 16, "head_dim_v": 16}
    few = {"batch": 1, "heads_q": 1, "heads_kv": 1}
    ran = joined(forward, backward)
    check(make_case(*(name for name in features if name != "plain"), dtype=dtype, **shape, **few))
    assert ran == [forward, backward]


def test_sdpa_forward_and_triton_backward(joined: Any) -> None:
    for options in ((), ("bhsd", "causal")):
        ran = joined("torch.sdpa_forward", "triton.backward")
        case = make_case(*options, dtype=torch.float32, batch=1, heads_q=2, heads_kv=2, seqlen_q=40, seqlen_k=40)
        check(case)
        assert ran == ["torch.sdpa_forward", "triton.backward"]
