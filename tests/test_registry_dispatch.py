"""The registry of kernels and the way from a problem to a plan, with made-up kernels."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from faops import dispatch, registry
from faops.autotune import cache
from faops.device import DeviceProfile, known
from faops.errors import ArgumentError, FaopsWarning, NoKernelError
from faops.problem import AttentionProblem
from faops.registry import Accepted, Config, Decision, Kernel, Rejected, decide

H200, T4 = known("h200"), known("t4")
PROBLEM = AttentionProblem(seqlen_q=128, seqlen_k=128)


class Fake(Kernel):
    """A kernel of the made-up backend "fake" that refuses for the given reasons."""

    backend = "fake"

    def __init__(self, name: str, op: str = "forward", priority: int = 1000, reasons: tuple[str, ...] = ()) -> None:
        self.name, self.op, self.priority, self.reasons = name, op, priority, reasons  # type: ignore[assignment]
        self.checks = 0

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        self.checks += 1
        return decide(self.reasons)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return [Config(block=16), Config(block=32)]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(block=16)

    def launch(self, inputs: Any, config: Config) -> Any:
        raise AssertionError("planning launches nothing")


@pytest.fixture
def add() -> Iterator[Callable[[Kernel], Kernel]]:
    added: list[str] = []

    def register(kernel: Kernel) -> Kernel:
        registry.register(kernel)
        added.append(kernel.id)
        return kernel

    yield register
    for name in added:
        registry.unregister(name)
    dispatch.forget()


def test_config_is_a_hashable_mapping() -> None:
    config = Config(block_q=16, stages=2)
    assert config == Config({"stages": 2, "block_q": 16})
    assert hash(config) == hash(Config({"stages": 2, "block_q": 16}))
    assert config != Config(block_q=32, stages=2)
    assert dict(config) == {"block_q": 16, "stages": 2}
    assert config.integer("block_q") == 16
    assert config.integer("absent", 3) == 3
    assert repr(config) == "block_q=16, stages=2"
    assert len({config, Config(block_q=16, stages=2), Config()}) == 2


def test_decide_keeps_every_reason() -> None:
    assert decide([]) == Accepted()
    assert decide(["no bias", "no sinks"]) == Rejected(("no bias", "no sinks"))
    assert decide([])
    assert not decide(["x"])


def test_kernels_are_listed_by_priority(add: Callable[[Kernel], Kernel]) -> None:
    low, high = add(Fake("low", priority=1000)), add(Fake("high", priority=2000))
    add(Fake("other", op="backward", priority=3000))
    listed = registry.kernels("forward")
    assert listed[:2] == [high, low]
    assert all(kernel.op == "forward" for kernel in listed)
    assert registry.get("fake.low") is low
    assert registry.get("fake.absent") is None
    assert "fake" in registry.backends()
    assert "torch" in registry.backends()


def test_registering_again_replaces(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("one"))
    before = registry.generation()
    second = add(Fake("one"))
    assert registry.get("fake.one") is second
    assert registry.generation() > before


def test_a_name_a_family_or_a_backend_means_a_kernel() -> None:
    kernel = Fake("blockwise_forward")
    for name in ("fake", "fake.blockwise_forward", "fake.blockwise"):
        assert kernel.matches(name)
    for name in ("torch", "fake.block", "blockwise_forward", "fak", ""):
        assert not kernel.matches(name)


def test_source_hash_follows_the_source() -> None:
    assert Fake("one").source_hash() == Fake("two").source_hash()
    assert Fake("one").source_hash() != registry.kernels("backward")[-1].source_hash()


def load_with_entry_points(monkeypatch: pytest.MonkeyPatch, *entries: SimpleNamespace) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "_failures", {})


def test_third_parties_register_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def register_kernels() -> None:
        registry.register(Fake("third_party"))

    load_with_entry_points(monkeypatch, SimpleNamespace(name="third", load=lambda: register_kernels))
    try:
        assert registry.get("fake.third_party") is not None
        assert registry.failures() == {}
    finally:
        registry.unregister("fake.third_party")


def test_a_broken_entry_point_is_reported_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("no module named libwrong")

    load_with_entry_points(monkeypatch, SimpleNamespace(name="wrong", load=load))
    with pytest.warns(FaopsWarning, match=r"'wrong' could not be loaded: no module named libwrong"):
        assert registry.kernels("forward")
    assert registry.failures() == {"wrong": "ImportError: no module named libwrong"}


def test_highest_priority_that_accepts_wins(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("refuses", priority=3000, reasons=("too old",)))
    accepts = add(Fake("accepts", priority=2000))
    add(Fake("slower", priority=1500))
    plan = dispatch.plan(PROBLEM, H200)
    assert plan.kernel is accepts
    assert plan.config == Config(block=16)
    assert (plan.source, plan.forced) == ("default", False)


def test_forced_backend_wins_over_priority(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("fast", priority=3000))
    slow = add(Fake("slow_forward", priority=1))
    for name in ("fake.slow", "fake.slow_forward"):
        plan = dispatch.plan(PROBLEM, H200, name)
        assert plan.kernel is slow
        assert plan.forced


def test_backend_setting_forces_too(add: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    add(Fake("fast", priority=3000))
    slow = add(Fake("slow_forward", priority=1))
    monkeypatch.setenv("FAOPS_BACKEND", "fake.slow")
    assert dispatch.plan(PROBLEM, H200).kernel is slow
    assert dispatch.plan(PROBLEM, H200, "fake.fast").kernel is not slow


def test_forced_backend_that_cannot_raises_with_all_reasons(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("first_forward", reasons=("no bias", "needs sm_90")))
    add(Fake("second_forward", reasons=("no varlen",)))
    with pytest.raises(NoKernelError) as caught:
        dispatch.plan(PROBLEM, T4, "fake")
    assert caught.value.problem == PROBLEM
    assert caught.value.rejections == {
        "fake.first_forward": ("no bias", "needs sm_90"),
        "fake.second_forward": ("no varlen",),
    }
    for text in (
        "Tesla T4",
        "fake.first_forward: no bias; needs sm_90",
        "fake.second_forward: no varlen",
        str(PROBLEM),
    ):
        assert text in str(caught.value)


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"backend: got 'cudnn', expected one of .*torch"):
        dispatch.plan(PROBLEM, H200, "cudnn")


def test_backend_without_the_op(add: Callable[[Kernel], Kernel]) -> None:
    """Backward is left to the others; a missing forward is an error."""
    add(Fake("attend", op="forward"))
    backward = dispatch.plan(replace(PROBLEM, op="backward", need_lse=True), H200, "fake")
    assert backward.kernel.backend != "fake"
    with pytest.raises(NoKernelError, match="fake: has no kernel for decode"):
        dispatch.plan(replace(PROBLEM, op="decode"), H200, "fake")


def test_plans_are_memoised_until_the_kernels_change(add: Callable[[Kernel], Kernel]) -> None:
    kernel = add(Fake("counting", priority=3000))
    assert isinstance(kernel, Fake)
    first = dispatch.plan(PROBLEM, H200)
    checks = kernel.checks
    assert dispatch.plan(PROBLEM, H200) is first
    assert kernel.checks == checks
    dispatch.plan(replace(PROBLEM, softcap=True), H200)
    dispatch.plan(PROBLEM, T4)
    assert kernel.checks == checks + 2
    better = add(Fake("better", priority=4000))
    assert dispatch.plan(PROBLEM, H200).kernel is better


def test_memo_is_bounded(add: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    add(Fake("any"))
    monkeypatch.setattr(dispatch, "MEMO_LIMIT", 10)
    for size in range(1, 40):
        dispatch.plan(replace(PROBLEM, seqlen_k=size), H200)
        assert len(dispatch.memo()) <= 10


def test_tuned_winner_comes_before_priority(add: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    add(Fake("fast", priority=3000))
    slow = add(Fake("slow", priority=2000))
    seen: list[list[Kernel]] = []

    def lookup(problem: AttentionProblem, device: DeviceProfile, accepted: list[Kernel]) -> cache.Winner:
        seen.append(accepted)
        return cache.Winner(slow, Config(block=32), "tuned", "measured yesterday")

    monkeypatch.setattr(cache, "lookup", lookup)
    plan = dispatch.plan(PROBLEM, H200)
    assert (plan.kernel, plan.config, plan.source, plan.detail) == (
        slow,
        Config(block=32),
        "tuned",
        "measured yesterday",
    )
    assert slow in seen[0]
    monkeypatch.setenv("FAOPS_TUNING", "0")
    dispatch.forget()
    assert dispatch.plan(PROBLEM, H200).source == "default"


def test_only_kernels_that_accept_are_offered_to_the_cache(
    add: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    add(Fake("refuses", priority=3000, reasons=("no",)))
    add(Fake("accepts", priority=2000))
    offered: list[str] = []

    def lookup(problem: AttentionProblem, device: DeviceProfile, accepted: list[Kernel]) -> None:
        offered.extend(kernel.id for kernel in accepted)

    monkeypatch.setattr(cache, "lookup", lookup)
    dispatch.plan(PROBLEM, H200)
    assert "fake.accepts" in offered
    assert "fake.refuses" not in offered


def test_new_winners_on_disk_empty_the_memo(add: Callable[[Kernel], Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = add(Fake("fast", priority=3000)), add(Fake("slow", priority=2000))
    stamps, winners, now = ["before"], [None], [100.0]
    monkeypatch.setattr(cache, "stamp", lambda: stamps[0])
    monkeypatch.setattr(cache, "lookup", lambda *_: winners[0])
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    assert dispatch.plan(PROBLEM, H200).kernel is fast
    stamps[0], winners[0] = "after", cache.Winner(slow, Config(), "tuned", "")  # type: ignore[call-overload]
    assert dispatch.plan(PROBLEM, H200).kernel is fast  # looked at once a second at most
    now[0] += dispatch.RECHECK_SECONDS
    assert dispatch.plan(PROBLEM, H200).kernel is slow


def test_explain_tells_plan_and_reasons(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("refuses", priority=3000, reasons=("no bias", "too small")))
    add(Fake("accepts", priority=2000))
    told = dispatch.explain(PROBLEM, H200)
    assert told.chosen is not None
    assert told.chosen.kernel.id == "fake.accepts"
    text = str(told)
    for part in ("NVIDIA H200", "sm_90", "fake.refuses: no bias; too small", "fake.accepts: accepts", "not tuned"):
        assert part in text
    data = told.as_dict()
    assert data["plan"]["kernel"] == "fake.accepts"
    assert data["key"] == PROBLEM.key()
    refused = next(entry for entry in data["kernels"] if entry["kernel"] == "fake.refuses")
    reasons = ["no bias", "too small"]
    assert refused == {"kernel": "fake.refuses", "accepted": False, "automatic": True, "reasons": reasons}


def test_explain_never_raises_for_want_of_a_kernel(add: Callable[[Kernel], Kernel]) -> None:
    add(Fake("refuses", reasons=("no bias",)))
    told = dispatch.explain(PROBLEM, H200, "fake")
    assert told.chosen is None
    assert "no bias" in told.error
    assert "no plan" in str(told)
    assert told.as_dict()["plan"] is None
