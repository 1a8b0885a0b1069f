"""Misses become tasks, or are refused with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faops.autotune import model
from faops.autotune.cache import TuningCache, environment
from faops.autotune.measurement import remote
from faops.daemon.jobs import Task
from faops.daemon.worker import assessing, devices
from faops.daemon.worker.assessing import assess
from faops.daemon.worker.devices import Place, place_of
from faops.device import DeviceProfile, detect, known
from faops.errors import DaemonError
from faops.problem import AttentionProblem, Band
from faops.registry import Kernel

from ..autotune.conftest import only_fakes, register  # noqa: F401
from ..autotune.support import PROBLEM, FakeKernel, make_entry


@pytest.fixture
def cpu() -> DeviceProfile:
    return detect("cpu")


def miss(profile: DeviceProfile, problem: Any = PROBLEM, **changes: Any) -> dict[str, Any]:
    name = environment.directory_name()
    data = problem.as_dict() if isinstance(problem, AttentionProblem) else problem
    return {"identity": profile.identity, "environment": name, "problem": data, **changes}


def assessed(*misses: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(answer) for answer in json.loads(json.dumps(assess(misses)))]


def refusal(one: dict[str, Any]) -> str:
    (answer,) = assessed(one)
    assert set(answer) == {"refused"}
    return str(answer["refused"])


def test_misses_are_answered_in_their_order(cpu: DeviceProfile) -> None:
    other = replace(PROBLEM, head_dim=64, band=Band(-1, 0))
    first, second, third = assessed(miss(cpu), {"identity": "x"}, miss(cpu, other, threads=cpu.threads))
    task = Task.from_dict(first)
    assert task.mark == (cpu.identity, environment.directory_name(), PROBLEM.key())
    assert (task.device, task.threads, task.words) == ("cpu", cpu.threads, str(PROBLEM))
    assert AttentionProblem.from_dict(task.problem) == PROBLEM
    assert 0 < task.call_seconds < 1 < task.tuning_seconds < 1000
    assert "refused" in second
    assert third["key"] == other.key()
    assert assess([]) == []


@pytest.mark.parametrize("told", [True, False])
def test_a_cpu_with_other_threads_is_ours(cpu: DeviceProfile, told: bool) -> None:
    """A program computes with the number that it likes."""
    theirs = replace(cpu, threads=cpu.threads + 5)
    (answer,) = assessed(miss(theirs, **({"threads": theirs.threads} if told else {})))
    assert (answer["identity"], answer["threads"], answer["device"]) == (theirs.identity, theirs.threads, "cpu")


def test_what_is_not_of_this_machine_is_refused(cpu: DeviceProfile) -> None:
    for other in (known("h200"), replace(cpu, units=cpu.units + 1), replace(cpu, threads=0), replace(cpu, name="Z80")):
        assert refusal(miss(other)) == f"{other.identity} is no device of this machine, which has {cpu.identity}"
    assert "is no device" in refusal(miss(replace(cpu, threads=9999)))
    present = environment.directory_name()
    assert refusal(miss(cpu, environment="torch-1")) == f"it is of other software (torch-1), this is {present}"


def test_the_first_of_devices_that_are_alike(cpu: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    card = known("h200")
    alike = [Place("cpu", cpu), Place("cuda:0", known("t4")), Place("cuda:1", card), Place("cuda:2", card)]
    monkeypatch.setattr(devices, "places", lambda: alike)
    assert place_of(card.identity) is alike[2]
    with pytest.raises(DaemonError, match=f"which has {known('t4').identity}, {card.identity}$"):
        place_of("x", known=alike[1:])


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (replace(PROBLEM, seqlen_k=0), "there is no work in its problem"),
        (replace(PROBLEM, heads_kv=3), "no call can ask its problem"),
        (replace(PROBLEM, dtype="int3"), "no call can ask its problem"),
        (replace(PROBLEM, batch=True), "no call can ask its problem"),
        (replace(PROBLEM, band=Band(5000, 0)), "its window hides nothing, and no call would ask so"),
        (replace(PROBLEM, dtype="float8_e4m3fn"), "no kernel can run forward float8_e4m3fn"),
    ],
)
def test_problems_that_cannot_be_tuned_are_refused(cpu: DeviceProfile, problem: AttentionProblem, reason: str) -> None:
    assert refusal(miss(cpu, problem)).startswith(reason)


@pytest.mark.parametrize(
    "data", [None, [], "x", 5, {"op": 5}, {"future": 1}, {"band": 3}, {"band": {"up": 1}}, {"batch": 10**400}]
)
def test_what_is_no_problem_is_refused(cpu: DeviceProfile, data: Any) -> None:
    why = refusal(miss(cpu, {**PROBLEM.as_dict(), **data} if isinstance(data, dict) else data))
    assert why.startswith(("it is no problem that this version knows (", "no call can ask its problem"))


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just({}) | st.just([])


@given(st.dictionaries(st.sampled_from(sorted(PROBLEM.as_dict())), ANYTHING, max_size=3), ANYTHING)
@settings(max_examples=30, deadline=None)
def test_any_miss_is_answered(changes: dict[str, Any], threads: Any) -> None:
    (answer,) = assess([miss(detect("cpu"), {**PROBLEM.as_dict(), **changes}, threads=threads)])
    assert "refused" in answer or answer["key"]


def test_warm_is_what_the_tuner_would_not_measure(cpu: DeviceProfile) -> None:
    from faops import registry

    kernel = registry.get("torch.sdpa_forward")
    assert kernel is not None
    default = kernel.default_config(PROBLEM, cpu)
    entry = make_entry(cpu, kernel=kernel.id, default_kernel=kernel.id, source_hash=kernel.source_hash(),
                       config=default, default_config=default, timings=())  # fmt: skip
    (cold,) = assessed(miss(cpu))
    TuningCache().store(cpu, entry)
    (warm,) = assessed(miss(cpu))
    assert not cold["warm"]
    assert warm == {**cold, "warm": True}  # it says how long tuning takes, for those who force it
    TuningCache().store(cpu, replace(entry, source_hash="older code"))
    (stale,) = assessed(miss(cpu))
    assert not stale["warm"]


@pytest.mark.usefixtures("only_fakes")
def test_the_time_of_a_call_is_predicted_or_guessed(
    cpu: DeviceProfile,
    register: Callable[[Kernel], Kernel],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(FakeKernel())
    (guessed,) = assessed(miss(cpu))
    assert guessed["call_seconds"] == remote.call_seconds(PROBLEM, cpu)
    asked: list[Any] = []
    prediction = replace(some_prediction(cpu), seconds=12.5)

    def predict(*arguments: Any) -> model.Prediction:
        asked.append(arguments)
        return prediction

    monkeypatch.setattr(assessing.model, "predict", predict)
    assert assessed(miss(cpu))[0]["call_seconds"] == 12.5
    ((kernel, problem, profile, config),) = asked
    assert (kernel.id, problem, profile, dict(config)) == ("fake.forward", PROBLEM, cpu, {"block": 0})
    for nonsense in (0.0, math.inf, math.nan):
        prediction = replace(prediction, seconds=nonsense)
        assert assessed(miss(cpu))[0]["call_seconds"] == guessed["call_seconds"]


def some_prediction(cpu: DeviceProfile) -> model.Prediction:
    from faops import registry

    kernel = registry.get("torch.blockwise_forward")
    assert kernel is not None
    found = model.predict(kernel, PROBLEM, cpu, kernel.default_config(PROBLEM, cpu))
    assert found is not None
    return found


# ----------------------------------------------------------------------------------------------------------- devices


def test_devices(cpu: DeviceProfile) -> None:
    assert devices.devices()[0] == {
        "device": "cpu", "name": cpu.name, "identity": cpu.identity, "environment": environment.directory_name(),
        "vendor": "cpu", "arch": cpu.arch, "threads": cpu.threads, "units": cpu.units, "uuid": "",
    }  # fmt: skip


def test_accelerators(monkeypatch: pytest.MonkeyPatch, cpu: DeviceProfile) -> None:
    """What torch would say on a machine with two cards and an NPU."""
    cards = {"cpu": cpu, "cuda:0": known("h200"), "cuda:1": known("t4"), "npu:0": known("910b")}

    class Properties:
        uuid = "1234"

    class Module:
        def __init__(self, count: int) -> None:
            self.device_count = lambda: count

    modules = {"cuda": Module(2), "npu": Module(1)}
    monkeypatch.setattr(devices, "present", lambda: ["cpu", "cuda", "mps", "npu"])
    monkeypatch.setattr(devices, "detect", lambda name: cards[name])
    monkeypatch.setattr(torch, "get_device_module", lambda kind: modules[kind])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    found = devices.devices()
    assert [(item["device"], item["identity"]) for item in found] == [
        (name, profile.identity) for name, profile in cards.items()
    ]
    assert [item["uuid"] for item in found] == ["", "GPU-1234", "GPU-1234", ""]
    assert [item["threads"] for item in found] == [cpu.threads, 0, 0, 0]
    monkeypatch.delattr(Properties, "uuid")
    assert devices.devices()[1]["uuid"] == ""


def test_threads_are_prepared() -> None:
    before = torch.get_num_threads()
    try:
        devices.prepare(before + 1)
        assert torch.get_num_threads() == before + 1
        devices.prepare(0)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
