"""Footprints of the GPU kernels: what is counted, how predictions follow the problem, and published figures."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faops.autotune.model import predict, rank
from faops.autotune.model.predict import of_footprint
from faops.autotune.search.candidates import Candidate
from faops.backends.triton.gates.cases import device_of, problem_of
from faops.device import DeviceProfile, known
from faops.footprint import Resources, score_work
from faops.occupancy import blocks_by_resource
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

from ...test_tiling import touched, visible
from .support import A100, CAUSAL, H100, KERNELS, NVIDIA, problem, seconds, serving

RAW, FORWARD, BACKWARD, DECODE = (
    KERNELS[name] for name in ("cuda_raw.sm80_forward", "triton.forward", "triton.backward", "triton.decode")
)
OPS = ("forward", "backward", "decode")
RECORDED = Path(__file__).parents[3] / "benchmarks" / "results" / "static" / "triton_gates.txt"


def tiles(asked: AttentionProblem, block_m: int, block_n: int) -> int:
    """Tiles of all heads with a visible pair, looked at one by one."""
    heads = asked.batch * asked.heads_q
    return heads * len(touched(visible(asked.band, asked.seqlen_q, asked.seqlen_k), block_m, block_n))


SMALL = problem(batch=3, seqlen_q=90, seqlen_k=130, heads_q=4, heads_kv=2, head_dim=40, head_dim_v=24, band=Band(50, 5))


@pytest.mark.parametrize("band", [Band(), CAUSAL, Band(50, 5)])
def test_products_are_those_of_all_tiles(band: Band) -> None:
    asked = replace(SMALL, band=band)
    config = Config(tile_m=64, tile_n=32, warps=4, stages=1, q_in_registers=True)
    raw = RAW.footprint(asked, A100, config)
    assert raw is not None
    assert raw.matrix_flops == tiles(asked, 64, 32) * 2 * 64 * 32 * (48 + 32)  # padded to multiples of 16
    triton = FORWARD.footprint(asked, A100, Config(block_m=64, block_n=32, num_warps=4, num_stages=2))
    assert triton is not None
    assert triton.matrix_flops == tiles(asked, 64, 32) * 2 * 64 * 32 * (64 + 32)  # padded to powers of two
    assert raw.blocks == triton.blocks == 3 * 4 * 2
    assert raw.exponentials >= tiles(asked, 64, 32) * 64 * 32


def test_backward_recomputes_in_each_kernel_or_adds_atomically() -> None:
    asked = replace(SMALL, op="backward", need_lse=True, head_dim=64, head_dim_v=32)
    plain = {"block_outer": 32, "block_inner": 16, "num_warps": 4, "num_stages": 2}
    by_keys, by_rows = (2 * 32 * 16 * tiles(asked, *blocks) for blocks in ((16, 32), (32, 16)))
    apart = BACKWARD.footprint(asked, A100, Config(plain, atomic_dq=False))
    assert apart is not None
    assert [part.matrix_flops for part in apart.parts()] == [
        0, by_keys * (2 * 64 + 2 * 32), by_rows * (2 * 64 + 32)
    ]  # fmt: skip
    atomic = BACKWARD.footprint(asked, A100, Config(plain, atomic_dq=True))
    assert atomic is not None
    assert [part.matrix_flops for part in atomic.parts()] == [0, by_keys * (3 * 64 + 2 * 32)]
    bias = BACKWARD.footprint(replace(asked, bias=".hmn", bias_grad=True), A100, Config(plain, atomic_dq=False))
    assert bias is not None and len(list(bias.parts())) == 4


def test_decode_splits() -> None:
    asked = problem("decode", batch=3, seqlen_k=1000, heads_q=8, heads_kv=2)
    plain = {"block_m": 16, "block_n": 64, "num_warps": 4, "num_stages": 3}
    found = [DECODE.footprint(asked, A100, Config(plain, splits=splits)) for splits in (1, 4)]
    one, four = found
    assert one is not None and four is not None
    assert one.matrix_flops == four.matrix_flops == 3 * 2 * 16 * 2 * (16 * 64) * (128 + 128)
    assert (one.blocks, four.blocks) == (6, 24)
    assert (one.steps, four.steps) == (16, 4)
    assert one.then is None and four.then is not None
    assert four.then.blocks == 3 * 8  # rows to combine
    assert four.then.traffic > 4 * 3 * 8 * 4 * 128


def test_float32_is_multiplied_outside_the_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(dtype="float32")
    config = FORWARD.default_config(asked, A100)
    exact = FORWARD.footprint(asked, A100, config)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    tf32 = FORWARD.footprint(asked, A100, config)
    assert exact is not None and tf32 is not None
    assert exact.matrix_flops == 0 and exact.vector_flops > tf32.matrix_flops > 0
    assert of_footprint(exact, A100).seconds > 2 * of_footprint(tf32, A100).seconds


def test_instructions_of_newer_architectures() -> None:
    """Hopper and the large Blackwells multiply faster with instructions that only Triton uses, for large tiles."""
    asked = problem()
    large, small = (Config(block_m=rows, block_n=64, num_warps=4, num_stages=2) for rows in (128, 32))
    raw = RAW.default_config(asked, A100)
    shares = {}
    for card in ("a100", "4090", "h100", "b200"):
        found = [
            RAW.footprint(asked, known(card), raw),
            *(FORWARD.footprint(asked, known(card), c) for c in (large, small)),
        ]
        shares[card] = [one.matrix_share for one in found if one is not None]
    assert shares == {"a100": [1, 1, 1], "4090": [1, 1, 1], "h100": [0.63, 1, 0.63], "b200": [0.25, 1, 0.25]}


def test_shared_memory_of_recorded_gates() -> None:
    """What Triton's compiler gave the default forward and decode kernels, as estimated before it."""
    pattern = re.compile(r"(sm_\d+) (forward|decode) d(\d+) .*?\]\s+\w+\.attention_\w+\s+\d+\s+\d+\s+(\d+)")
    found = [match for line in RECORDED.read_text().splitlines() if (match := pattern.match(line))]
    assert len(found) == 16
    for match in found:
        kernel, dim = KERNELS[f"triton.{match[2]}"], int(match[3])
        asked = problem_of(match[2], dim, "float16", "causal")
        estimate = kernel.footprint(asked, device_of(match[1]), kernel.default_config(asked, device_of(match[1])))
        assert estimate is not None
        assert estimate.shared_bytes == pytest.approx(int(match[4]), rel=0.01), match[0]


@pytest.mark.parametrize("feature", ["softcap", "alibi", "dropout", "bias", "mask"])
def test_features_cost(feature: str) -> None:
    plain = problem()
    value: Any = ".hmn" if feature in ("bias", "mask") else True
    featured = replace(plain, **{feature: value})
    assert score_work(featured).operations > score_work(plain).operations
    for kernel in (RAW, FORWARD):
        config = kernel.default_config(featured, A100)
        assert seconds(kernel, featured, A100, config) > seconds(kernel, plain, A100, config)


# ---------------------------------------------------------------------------------------------- how time follows


def everywhere(op: str) -> list[tuple[DeviceProfile, Kernel]]:
    return [(known(card), kernel) for card in NVIDIA for kernel in serving(known(card), op)]


@pytest.mark.parametrize("op", OPS)
def test_twice_the_keys_take_longer_on_every_device(op: str) -> None:
    """Full and large, so that what is constant does not count: 1.5 times at least, and no more than twice by much."""
    for device, kernel in everywhere(op):
        for dim in (64, 128, 256):
            asked = problem(op, batch=64, seqlen_k=8192, head_dim=dim, head_dim_v=dim, band=Band())
            longer = replace(asked, seqlen_k=2 * asked.seqlen_k)
            config = kernel.default_config(asked, device)
            ratio = seconds(kernel, longer, device, config) / seconds(kernel, asked, device, config)
            assert 1.5 <= ratio <= 2.2, (device.name, kernel.id, dim, ratio)


@pytest.mark.parametrize("op", OPS)
def test_causal_is_faster_and_a_window_faster_still(op: str) -> None:
    for device, kernel in everywhere(op):
        full = problem(op, batch=8, seqlen_q=4096 if op != "decode" else 1, band=Band())
        config = kernel.default_config(full, device)
        times = [seconds(kernel, replace(full, band=band), device, config) for band in (Band(), CAUSAL, Band(256, 0))]
        if op != "decode":
            assert 1.4 < times[0] / times[1] < 2.1, (device.name, kernel.id)
        assert times[0] > 3 * times[2], (device.name, kernel.id)


@pytest.mark.parametrize("op", OPS)
def test_everything_in_the_tuning_spaces_fits(op: str) -> None:
    """The spaces are made to fit, by the kernels' own count; what the model prunes all the same does not."""
    for device, kernel in everywhere(op):
        for dim in (64, 128, 192):
            asked = problem(op, head_dim=dim, head_dim_v=dim)
            for config in kernel.configs(asked, device):
                footprint = kernel.footprint(asked, device, config)
                assert footprint is not None
                found = of_footprint(footprint, device)
                fits = all(
                    min(blocks_by_resource(device.arch, part.registers, part.shared_bytes, part.threads).values())
                    for part in footprint.parts()
                )
                assert fits == (found.obstacle == "") == (found.seconds < float("inf")), (device.name, kernel.id)
                assert fits or config.get("warp_specialize"), (device.name, kernel.id, config)
                assert found.bound in ("compute", "memory", "latency", "overhead")


def test_splits_pay_where_there_are_few_sequences() -> None:
    for device in (A100, H100):
        few, many = (problem("decode", batch=batch, seqlen_k=16384, heads_kv=4) for batch in (1, 256))
        plain = DECODE.default_config(few, device)
        one, sixteen = (Config({**plain, "splits": splits}) for splits in (1, 16))
        assert seconds(DECODE, few, device, one) > 5 * seconds(DECODE, few, device, sixteen)
        assert seconds(DECODE, many, device, one) <= seconds(DECODE, many, device, sixteen)


def test_no_more_than_the_roofline() -> None:
    """No prediction is faster than the published rates of products and memory allow."""
    for op in OPS:
        for device, kernel in everywhere(op):
            asked = problem(op, batch=16)
            found = seconds(kernel, asked, device, kernel.default_config(asked, device))
            assert found > asked.flops() / device.matrix_flops, (device.name, kernel.id)
            assert found > asked.bytes_moved() / device.bandwidth, (device.name, kernel.id)


# Published TFLOP/s of fused attention on these cards, of other kernels: a magnitude is all that is asked for.
# A100: "50-73 % of the theoretical maximum" of 312, Dao 2023, FlashAttention-2, abstract. H100: FlashAttention-2 "only
# achieves 35 % utilization" of 989, Shah et al. 2024, FlashAttention-3, abstract.
PUBLISHED = [("a100", (0.50 * 312, 0.73 * 312)), ("h100", (0.35 * 989, 0.35 * 989))]


@pytest.mark.parametrize(("card", "teraflops"), PUBLISHED)
@pytest.mark.parametrize("kernel", [RAW, FORWARD], ids=lambda kernel: str(kernel.id))
def test_published_speed_of_causal_forward(card: str, teraflops: tuple[float, float], kernel: Kernel) -> None:
    asked, device = problem(batch=2, seqlen_q=8192, seqlen_k=8192), known(card)
    found = asked.flops() / seconds(kernel, asked, device, kernel.default_config(asked, device)) / 1e12
    assert teraflops[0] / 2 < found < 2 * teraflops[1]


def test_cpu_has_no_footprint_of_gpu_kernels() -> None:
    cpu = known("cpu")
    for op in OPS:
        asked = problem(op)
        for kernel in KERNELS.values():
            if kernel.op == op:
                assert kernel.footprint(asked, cpu, kernel.default_config(asked, A100)) is None
                assert predict(kernel, asked, cpu, kernel.default_config(asked, A100)) is None
                assert kernel.compile(asked, cpu, kernel.default_config(asked, A100)) is None


# ---------------------------------------------------------------------------------------------- ranking


def test_rank_orders_prunes_and_loses_nothing() -> None:
    asked = problem()
    candidates = [Candidate(kernel, config) for kernel in (RAW, FORWARD) for config in kernel.configs(asked, A100)]
    too_large = Candidate(RAW, Config(tile_m=256, tile_n=256, warps=8, stages=2, q_in_registers=False))
    ranked, pruned = rank([too_large, *candidates], asked, A100)
    assert {candidate for candidate, _ in ranked} == set(candidates) and len(ranked) == len(candidates)
    times = [prediction.seconds for _, prediction in ranked if prediction is not None]
    assert len(times) == len(ranked) and times == sorted(times)
    assert [candidate for candidate, _ in pruned] == [too_large]
    assert "bytes of shared memory" in pruned[0][1].obstacle


def test_rank_after_compiling() -> None:
    asked = problem()
    candidates = [Candidate(RAW, config) for config in RAW.configs(asked, A100)]
    best = rank(candidates, asked, A100)[0][0][0]
    spilling = {best: Resources(registers=255, spill_bytes=4000, shared_bytes=32768)}
    ranked, pruned = rank(candidates, asked, A100, spilling)
    assert best not in [candidate for candidate, _ in ranked]
    assert [candidate for candidate, _ in pruned] == [best]
    crowded = {best: Resources(registers=255, spill_bytes=200, shared_bytes=150_000)}
    assert rank(candidates, asked, A100, crowded)[0][0][0] != best


class Unknown(Kernel):
    """Nobody has counted what it costs."""

    backend, op, priority = "unknown", "forward", 0

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Any: ...
    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return [Config(block=block) for block in range(3)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(block=0)

    def launch(self, inputs: Any, config: Config) -> Any: ...


def test_rank_takes_turns_with_what_nobody_can_predict() -> None:
    asked = problem()
    kernels: list[Kernel] = [Unknown("one"), FORWARD, Unknown("two")]
    candidates = [Candidate(kernel, config) for kernel in kernels for config in kernel.configs(asked, A100)]
    ranked, pruned = rank(candidates, asked, A100)
    assert pruned == [] and len(ranked) == len(candidates)
    names = [candidate.kernel.name for candidate, _ in ranked]
    assert names[:9] == ["forward", "one", "two"] * 3
    assert set(names[9:]) == {"forward"}
    assert [candidate.config["block"] for candidate, _ in ranked if candidate.kernel.name == "one"] == [0, 1, 2]
    assert all((prediction is None) == (candidate.kernel.backend == "unknown") for candidate, prediction in ranked)
    assert rank([], asked, A100) == ([], [])


def test_predicting_takes_no_time() -> None:
    """Some 50 to 100 microseconds; a bound that even a busy machine keeps."""
    for op, kernel in (("forward", RAW), ("forward", FORWARD), ("backward", BACKWARD), ("decode", DECODE)):
        asked = problem(op)
        configs = kernel.configs(asked, A100)
        best = float("inf")
        for _ in range(20):
            start = time.thread_time()
            for config in configs:
                predict(kernel, asked, A100, config)
            best = min(best, (time.thread_time() - start) / len(configs))
        assert best < 500e-6
