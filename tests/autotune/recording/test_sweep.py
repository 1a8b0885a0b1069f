"""Recorded sweeps: what is recorded, what a file keeps of it, and sweeps made up from the cost model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from faops.autotune.effort import Budget
from faops.autotune.measurement.bench import DeviceBench
from faops.autotune.recording import sweep
from faops.autotune.recording.sweep import modelled, read, record, thinned
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile, known
from faops.errors import CrashedError, NoKernelError
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

from ..support import PROBLEM, FakeBench, FakeKernel, steady

pytestmark = pytest.mark.usefixtures("only_fakes")

CAUSAL = AttentionProblem(
    op="backward", dtype="float16", seqlen_q=2048, seqlen_k=2048, heads_q=8, heads_kv=8, head_dim=64, head_dim_v=64,
    need_lse=True, band=Band(-1, 0),
)  # fmt: skip


def block(item: Candidate) -> int:
    return item.config.integer("block")


def troubled(item: Candidate) -> list[float]:
    if block(item) == 2:
        raise CrashedError("SIGSEGV")
    return steady(1.0 + block(item))


def test_every_config_is_timed_in_every_pass_and_checked_once(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    bench = FakeBench(troubled, wrong=lambda item: block(item) == 0)
    told: list[tuple[int, int]] = []
    found = record(PROBLEM, cpu, bench, lambda done, total, item: told.append((done, total)))
    times = [block(item) for item, _ in bench.timed]
    assert {number: times.count(number) for number in range(8)} == {0: 1, 2: 1, **dict.fromkeys((1, 3, 4, 5, 6, 7), 3)}
    assert sorted(map(block, bench.checked)) == [0, 1, 3, 4, 5, 6, 7]
    assert told == [(count, 24) for count in range(24)]
    assert {block(item): failed.kind for item, failed in found.failures.items()} == {0: "wrong", 2: "crashed"}
    times_found = {block(item): time for item, time in found.seconds.items()}
    assert times_found == pytest.approx({number: number + 1.0 for number in (1, 3, 4, 5, 6, 7)})
    assert block(found.best) == 1
    assert not found.modelled
    assert len(found.space) == 8 and found.space.defaults == (Candidate(kernel, Config(block=0)),)


def test_a_slow_drift_changes_no_order(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    bench = FakeBench(lambda item: steady((1 + 0.1 * block(item)) * (1 + 0.01 * len(bench.timed))))
    found = record(PROBLEM, cpu, bench)
    order = [block(item) for item, _ in bench.timed]
    assert order[:8] != order[8:16] != order[16:] and sorted(order[:8]) == sorted(order[16:])
    assert sorted(found.seconds, key=lambda item: found.seconds[item])[:2] == [
        Candidate(kernel, Config(block=0)), Candidate(kernel, Config(block=1))
    ]  # fmt: skip


def test_a_sweep_survives_its_file(kernel: FakeKernel, cpu: DeviceProfile, tmp_path: Path) -> None:
    found = record(PROBLEM, cpu, FakeBench(troubled))
    found.write(tmp_path / "sweep.jsonl")
    again = read(tmp_path / "sweep.jsonl")
    assert again == found
    assert (again.problem, again.profile) == (PROBLEM, cpu)
    assert (again.seconds, again.space) == (found.seconds, found.space)
    header = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert (header["provenance"], header["profile"]["name"]) == ("measured", cpu.name)


def test_kernels_that_are_gone_are_left_out(
    kernel: FakeKernel, cpu: DeviceProfile, register: Callable[[Kernel], Kernel]
) -> None:
    found = record(PROBLEM, cpu, FakeBench(troubled))
    gone = replace(found, records=(*found.records, replace(found.records[0], kernel="fake.gone")))
    assert gone.seconds == found.seconds
    assert len(gone.space) == 8


def test_few_samples_are_kept_evenly_and_rounded() -> None:
    kept = thinned([index / 3 for index in range(1, 1001)])
    assert len(kept) == sweep.KEPT_SAMPLES
    assert kept[0] < 20 and kept[-1] > 310
    assert all(value == float(f"{value:.{sweep.KEPT_DIGITS}g}") for value in kept)
    assert thinned([0.5, 0.25]) == (0.5, 0.25)
    assert thinned([]) == ()


def test_a_problem_that_nothing_runs(kernel: FakeKernel, cpu: DeviceProfile) -> None:
    kernel.reasons = ("needs more cores",)
    with pytest.raises(NoKernelError):
        record(PROBLEM, cpu, FakeBench(troubled))
    with pytest.raises(NoKernelError):
        modelled(PROBLEM, cpu, 0)


def test_a_made_up_sweep_says_so_and_can_be_made_again() -> None:
    found = modelled(CAUSAL, known("h200"), 3, error=0.25, noise=0.03)
    assert found.modelled
    assert "normal(0, 0.25)" in found.header.note and "seed 3" in found.header.note
    assert found == modelled(CAUSAL, known("h200"), 3, error=0.25, noise=0.03)
    assert found.records != modelled(CAUSAL, known("h200"), 4, error=0.25, noise=0.03).records
    assert len(found.records) == len(found.space) + len(found.space.pruned)


def test_a_made_up_sweep_errs_as_much_as_asked() -> None:
    deviations, scatter = [], []
    for seed in range(10):
        found = modelled(CAUSAL, known("h200"), seed, error=0.25, noise=0.03)
        predicted = found.space.predicted
        assert predicted
        deviations += [math.log(found.seconds[item] / time) for item, time in predicted.items()]
        scatter += [statistics.stdev(map(math.log, samples)) for (samples,) in found.passes.values()]
    assert abs(statistics.mean(deviations)) < 0.06
    assert 0.2 < statistics.stdev(deviations) < 0.3
    assert statistics.mean(scatter) == pytest.approx(0.03, rel=0.1)


def test_a_real_sweep_of_a_tiny_problem(cpu: DeviceProfile) -> None:
    problem = AttentionProblem(
        op="decode", dtype="float32", seqlen_k=64, heads_q=2, heads_kv=1, head_dim=16, head_dim_v=16
    )
    bench = DeviceBench(problem, torch.device("cpu"), cpu)
    hasty = Budget(warmup=0.0, time_cap=1e-4, min_samples=1)
    found = record(problem, cpu, bench, passes=2, budget=hasty)
    assert found.failures == {}
    assert all(0 < time < 1 for time in found.seconds.values())
    assert all(len(passes) == 2 for passes in found.passes.values())
    assert found.best in found.space.all
