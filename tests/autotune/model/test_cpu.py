"""What the model says of torch kernels on a CPU, against recorded CPU times and against the kernels' own loops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.overrides import TorchFunctionMode

from faops import registry
from faops.autotune.measurement.synthetic import inputs_for
from faops.autotune.model import predict
from faops.autotune.model.predict import of_footprint
from faops.device import DeviceProfile, detect, known
from faops.footprint import Footprint
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

RECORDED = json.loads((Path(__file__).parent / "cpu_timings.json").read_text())
ONE_THREAD = DeviceProfile(**{"units": 2, **RECORDED["device"]})
FOUR_THREADS = replace(ONE_THREAD, units=4, threads=4)
SMALL: dict[str, Any] = {
    "dtype": "float32", "batch": 2, "seqlen_q": 96, "seqlen_k": 96, "heads_q": 4, "heads_kv": 2, "head_dim": 32,
    "head_dim_v": 32,
}  # fmt: skip


class Pair(NamedTuple):
    measured: float
    predicted: float


def kernel_of(name: str) -> Kernel:
    found = registry.get(name)
    assert found is not None
    return found


def pairs(name: str) -> list[Pair]:
    problem = AttentionProblem.from_dict(RECORDED["problems"][name])
    found = []
    for of, kernel, config, seconds in RECORDED["timings"]:
        if of == name:
            prediction = predict(kernel_of(kernel), problem, ONE_THREAD, Config(config))
            assert prediction is not None and not prediction.obstacle
            found.append(Pair(seconds, prediction.seconds))
    return found


def ranks(values: Sequence[float]) -> list[float]:
    """Mean position of each among the sorted values."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]


def spearman(found: list[Pair]) -> float:
    """Rank correlation: Pearson's, of ranks."""
    one, other = ranks([pair.measured for pair in found]), ranks([pair.predicted for pair in found])
    mean = (len(found) - 1) / 2
    product = math.fsum((x - mean) * (y - mean) for x, y in zip(one, other))
    return product / math.sqrt(math.fsum((x - mean) ** 2 for x in one) * math.fsum((y - mean) ** 2 for y in other))


def test_spearman() -> None:
    assert spearman([Pair(1, 10), Pair(2, 20), Pair(3, 30)]) == pytest.approx(1)
    assert spearman([Pair(1, 30), Pair(2, 20), Pair(3, 10)]) == pytest.approx(-1)


@pytest.mark.parametrize("name", RECORDED["problems"])
def test_order_and_size_of_recorded_times(name: str) -> None:
    found = pairs(name)
    assert len(found) >= 5
    assert spearman(found) > 0.7
    best_first = sorted(found, key=lambda pair: pair.predicted)
    fastest = min(pair.measured for pair in found)
    assert min(pair.measured for pair in best_first[:4]) < 1.25 * fastest
    ratios = sorted(pair.predicted / pair.measured for pair in found)
    assert 0.4 < ratios[len(ratios) // 2] < 1.6


# ---------------------------------------------------------------------------------------------- what is counted


# Calls that start nothing: views, and questions about a tensor.
FREE = {"view", "transpose", "expand", "unsqueeze", "squeeze", "__get__", "__getitem__", "size", "dim", "numel",
        "expand_as", "stride", "item", "tolist", "get_num_threads", "is_floating_point"}  # fmt: skip


class Operations(TorchFunctionMode):
    """Counts what torch starts, and the FLOPs of its batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.flops = 0, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.__name__.rstrip("_") if function.__name__ not in FREE else ""
        self.count += bool(name)
        if name in ("bmm", "baddbmm"):
            left, right = args[-2:]
            self.flops += 2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2]
        return function(*args, **(kwargs or {}))


BLOCKS = Config(block_q=32, block_k=48, block_h=2, threads=0)
COUNTED = [
    ("torch.blockwise_forward", AttentionProblem(**SMALL)),
    ("torch.blockwise_forward", AttentionProblem(**SMALL, band=Band(-1, 0))),
    ("torch.blockwise_forward", AttentionProblem(**SMALL, band=Band(20, 3), need_lse=True)),
    ("torch.blockwise_backward", AttentionProblem(**SMALL, op="backward", need_lse=True, band=Band(-1, 0))),
    ("torch.blockwise_decode", AttentionProblem(**{**SMALL, "seqlen_q": 1}, op="decode")),
]


@pytest.mark.parametrize(("kernel", "problem"), COUNTED, ids=str)
def test_loops_are_counted(kernel: str, problem: AttentionProblem) -> None:
    """Products exactly, operations about."""
    inputs = inputs_for(problem, "cpu")
    with Operations() as counted:
        kernel_of(kernel).launch(inputs, BLOCKS)
    found = kernel_of(kernel).footprint(problem, ONE_THREAD, BLOCKS)
    assert found is not None
    assert found.matrix_flops == counted.flops > 0
    assert found.launches == pytest.approx(counted.count, rel=0.2)


# ---------------------------------------------------------------------------------------------- how time follows


def seconds(kernel: str, problem: AttentionProblem, device: DeviceProfile, **config: Any) -> float:
    chosen = Config({**kernel_of(kernel).default_config(problem, device), **config})
    found = predict(kernel_of(kernel), problem, device, chosen)
    assert found is not None
    return found.seconds


LARGE = AttentionProblem(**{**SMALL, "heads_q": 8, "seqlen_q": 2048, "seqlen_k": 2048}, band=Band(-1, 0))


@pytest.mark.parametrize("kernel", ["torch.sdpa_forward", "torch.blockwise_forward", "torch.sdpa_banded_forward"])
def test_more_threads_are_faster_and_twice_the_keys_slower(kernel: str) -> None:
    one, four = seconds(kernel, LARGE, ONE_THREAD), seconds(kernel, LARGE, FOUR_THREADS)
    assert 2 < one / four < 4.5
    assert seconds(kernel, LARGE, FOUR_THREADS, threads=1) == pytest.approx(one, rel=0.05)
    twice = replace(LARGE, seqlen_q=4096, seqlen_k=4096)
    assert 3 < seconds(kernel, twice, ONE_THREAD) / one < 5


def test_threads_that_there_are_no_cores_for_do_not_count() -> None:
    crowded = replace(ONE_THREAD, units=2, threads=64)
    assert seconds("torch.sdpa_forward", LARGE, crowded) > 0.4 * seconds("torch.sdpa_forward", LARGE, ONE_THREAD)


def of_tasks(blocks: int, threads: int, longest: float = 1.0) -> float:
    footprint = Footprint(blocks, threads, 0, 0, matrix_flops=1e12, traffic=0.0, longest=longest)
    return of_footprint(footprint, replace(ONE_THREAD, units=64, threads=64)).seconds


def test_tasks_are_dealt_out_whole() -> None:
    one = of_tasks(1, 1)
    assert of_tasks(4, 4) == pytest.approx(one / 4, rel=0.01)
    assert of_tasks(5, 4) == pytest.approx(one * 2 / 5, rel=0.01)  # one thread has two of five
    assert of_tasks(4, 64) == of_tasks(4, 4)  # sixty threads have none
    assert of_tasks(64, 64, longest=2.0) == pytest.approx(2 * of_tasks(64, 64), rel=0.01)


def test_operations_of_a_library_on_a_gpu_take_time_to_start() -> None:
    few, many = (Footprint(1, 0, 0, 0, 1e6, 1e3, launches=launches) for launches in (1, 1000))
    found = of_footprint(many, known("a100"))
    assert found.bound == "overhead"
    assert found.seconds > 500 * of_footprint(few, known("a100")).seconds / 2


def test_16_bits_are_widened_where_the_cpu_has_no_products_of_them() -> None:
    backward = replace(LARGE, op="backward", need_lse=True, dtype="bfloat16")
    plain, native = ONE_THREAD, replace(ONE_THREAD, arch=f"{ONE_THREAD.arch}-bf16")
    assert seconds("torch.sdpa_backward", backward, plain, upcast=False) > 1.5 * seconds(
        "torch.sdpa_backward", backward, plain, upcast=True
    )
    assert seconds("torch.sdpa_backward", backward, native, upcast=False) == pytest.approx(
        seconds("torch.sdpa_backward", backward, native, upcast=True)
    )


@pytest.mark.parametrize("card", ["a100", "910b"])
@pytest.mark.parametrize("name", ["torch.sdpa_forward", "torch.blockwise_forward"])
def test_torch_on_an_accelerator(card: str, name: str) -> None:
    found = []
    for dtype in ("float16", "float32"):
        problem, kernel = replace(LARGE, dtype=dtype), kernel_of(name)
        one = predict(kernel, problem, known(card), kernel.default_config(problem, known(card)))
        assert one is not None and (one.obstacle, one.occupancy) == ("", 0)
        assert 1e-6 < one.seconds < 1
        found.append(one.seconds)
    fused = name == "torch.sdpa_forward"  # which alone multiplies in 16 bits
    assert (found[1] > 3 * found[0]) == fused


def test_every_torch_kernel_has_a_footprint() -> None:
    cpu = detect("cpu")
    problems = [
        AttentionProblem(**SMALL), AttentionProblem(**SMALL, band=Band(9, 0)),
        AttentionProblem(**SMALL, layout="varlen"),
        AttentionProblem(**{**SMALL, "batch": 0}), AttentionProblem(**{**SMALL, "seqlen_k": 0}),
        AttentionProblem(**{**SMALL, "dtype": "float64"}, mask="b..n", bias=".hmn", dropout=True, alibi=True),
    ]  # fmt: skip
    problems += [replace(problem, op="backward", need_lse=True) for problem in problems]
    problems += [AttentionProblem(**SMALL, op="decode", layout="paged", page_size=16, append=True)]
    asked = set()
    for problem in problems:
        for kernel in registry.kernels(problem.op):
            if kernel.backend == "torch" and kernel.check(problem, cpu):
                asked.add(kernel.id)
                found = kernel.footprint(problem, cpu, kernel.default_config(problem, cpu))
                assert isinstance(found, Footprint)
                assert found.blocks >= 1 and found.launches >= 1 and found.matrix_flops >= 0
    assert asked == {kernel.id for kernel in registry.kernels() if kernel.backend == "torch"}


def test_float32_products_of_torch_follow_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of("torch.blockwise_forward")
    config = kernel.default_config(LARGE, known("a100"))
    found = []
    for precision in ("highest", "high"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        found.append(kernel.footprint(LARGE, known("a100"), config))
    exact, tf32 = found
    assert exact is not None and tf32 is not None
    assert (exact.matrix_flops, tf32.vector_flops) == (0, 0)
    assert exact.vector_flops == tf32.matrix_flops > 0
