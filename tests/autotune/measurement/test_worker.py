"""What a process that measures answers, asked in this process; and that it ends with the process that asks."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faops import registry
from faops.autotune import effort
from faops.autotune.effort import Budget
from faops.autotune.measurement import worker
from faops.autotune.measurement.remote import Helper, modules
from faops.autotune.measurement.worker import Worker, answer, answer_in_time, fingerprint
from faops.device import detect, known
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Kernel

from .processes import ends

PROBLEM = AttentionProblem(dtype="float32", seqlen_q=16, seqlen_k=16, heads_q=2, heads_kv=1, head_dim=16, head_dim_v=16)
ONCE = Budget(warmup=0.0, time_cap=0.0, min_samples=1)
ANSWERS = {"serial", "warnings", "value", "error"}


class Asking:
    """A worker that is asked as the other process would, JSON and all."""

    def __init__(self) -> None:
        self.worker = Worker()

    def __call__(self, do: str, **given: Any) -> dict[str, Any]:
        request = json.loads(json.dumps({"serial": 7, "limit": 5.0, "do": do, **given}))
        found: dict[str, Any] = json.loads(json.dumps(answer(self.worker, request)))
        assert set(found) <= ANSWERS
        assert found["serial"] == 7
        assert ("value" in found) is not ("error" in found)
        return found

    def open(self) -> None:
        profile = detect("cpu").as_dict()
        assert self("open", problem=asdict(PROBLEM), device="cpu", profile=profile)["value"] is None

    def sample(self, deed: str, kernel: str = "troublesome.forward") -> dict[str, Any]:
        return self("sample", kernel=kernel, config={"do": deed}, budget=asdict(ONCE))

    def check(self, deed: str) -> dict[str, Any]:
        return self("check", kernel="troublesome.forward", config={"do": deed})


@pytest.fixture
def asking(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.setattr(effort, "WARMUP_SECONDS", 0.0)
    return Asking()


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_preparing_sets_threads_and_tells_kernels(asking: Asking, troublesome: Kernel, threads: int) -> None:
    found = asking("prepare", threads=threads + 1, modules=["no_such_module", "wave"])["value"]
    assert torch.get_num_threads() == threads + 1
    assert found == {kernel.id: fingerprint(kernel) for kernel in registry.kernels()}
    assert found[troublesome.id].endswith(f".Troublesome {troublesome.source_hash()}")
    assert "wave" in sys.modules


def test_modules_are_those_that_register_kernels_of_others(
    troublesome: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert modules() == [type(troublesome).__module__]
    monkeypatch.setattr(type(troublesome), "__module__", "__main__")
    assert modules() == []


def test_the_module_of_a_device_comes_first(troublesome: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process has loaded it: without it ``npu:0`` means nothing to torch."""
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace())  # type: ignore[arg-type]
    assert modules() == ["torch_npu", type(troublesome).__module__]


def test_an_unknown_device_is_told_with_what_is_missing(asking: Asking, threads: int) -> None:
    found = asking("open", problem=asdict(PROBLEM), device="npu:0", profile=known("910b").as_dict())
    assert found["error"] == {"type": "TuningError", "message": "the measuring process has no device npu:0"}
    asking("prepare", threads=threads, modules=["no_such_torch_npu"])
    found = asking("open", problem=asdict(PROBLEM), device="npu:0", profile=known("910b").as_dict())
    assert found["error"]["message"].endswith(
        "has no device npu:0 (no_such_torch_npu: ModuleNotFoundError: No module named 'no_such_torch_npu')"
    )


def test_samples_come_with_their_conditions(asking: Asking) -> None:
    asking.open()
    value = asking.sample("sleep")["value"]
    assert min(value["samples"]) >= 0.02
    assert value["conditions"] == {}


def test_errors_are_told_by_the_name_of_their_class(asking: Asking) -> None:
    asking.open()
    assert asking.sample("fail")["error"] == {"type": "RuntimeError", "message": "no"}
    assert asking.sample("fail strangely")["error"]["type"] == "ArgumentError"
    assert asking.sample("", kernel="nobody.forward")["error"] == {
        "type": "TuningError",
        "message": "the measuring process knows no kernel nobody.forward",
    }
    assert asking.sample("")["value"]["samples"]


def test_results_are_checked(asking: Asking) -> None:
    asking.open()
    assert asking.check("")["value"] is None
    error = asking.check("wrong")["error"]
    assert error["type"] == "TuningError"
    assert "out is wrong" in error["message"]


def test_a_problem_must_be_open(asking: Asking) -> None:
    assert asking.sample("")["error"] == {"type": "TuningError", "message": "no problem was opened"}
    asking.open()
    assert "value" in asking.sample("")
    bad = {**asdict(PROBLEM), "fp8_descale": True}
    error = asking("open", problem=bad, device="cpu", profile=detect("cpu").as_dict())["error"]
    assert "fp8 descales" in error["message"]
    assert "no problem" in asking.sample("")["error"]["message"]  # rather than numbers of another


def test_warnings_of_faops_go_along(asking: Asking) -> None:
    asking.open()
    assert set(asking.sample("warn")["warnings"]) == {"take care"}
    assert asking.sample("")["warnings"] == []
    assert set(asking.sample("warn")["warnings"]) == {"take care"}  # whoever asks decides how often is enough


def test_compiling_needs_no_open_problem(asking: Asking) -> None:
    def compile(deed: str) -> dict[str, Any]:
        subject = {"problem": asdict(PROBLEM), "profile": known("h200").as_dict()}
        return asking("compile", kernel="troublesome.forward", config={"do": deed}, **subject)

    expected = Resources(registers=16, spill_bytes=8, shared_bytes=known("h200").units)
    assert compile("")["value"] == asdict(expected)
    assert compile("wrong")["error"] == {"type": "CompileError", "message": "it is wrong"}


# ------------------------------------------------------------------------------------------ the process that asks ends


def test_the_end_is_set_for_the_time_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    timer = SimpleNamespace(
        dump_traceback_later=lambda seconds, exit: done.append((seconds, exit)),
        cancel_dump_traceback_later=lambda: done.append("cancel"),
    )
    monkeypatch.setattr(worker, "faulthandler", timer)
    monkeypatch.setattr(worker, "answer", lambda *given: done.append("answer") or {})
    assert answer_in_time(Worker(), {"limit": 3.0}) == {}
    assert done == [(3.0 * worker.LIMITS, True), "answer", "cancel"]


def ask_and_wait(told: Connection, deed: str, limit: float) -> None:
    """In a process of its own: start a worker, tell its number, ask it for something that takes for ever."""
    helper = Helper(threads=1)
    child = helper.start()
    told.send(child.process.pid)
    child.request({"do": "open", "problem": asdict(PROBLEM), "device": "cpu", "profile": detect("cpu").as_dict()}, 20)
    child.ask({"do": "sample", "kernel": "troublesome.forward", "config": {"do": deed}, "budget": asdict(ONCE)}, limit)
    told.send("asked")
    child.wait()


@pytest.mark.parametrize(("deed", "limit"), [("hang", 1000.0), ("hang alone", 0.5)])
def test_a_worker_ends_with_the_process_that_asks(troublesome: Kernel, deed: str, limit: float) -> None:
    """Also in the middle of a kernel; one that holds Python's lock ends a while after its limit."""
    ours, theirs = multiprocessing.Pipe()
    asking = multiprocessing.get_context("fork").Process(target=ask_and_wait, args=(theirs, deed, limit))
    asking.start()
    number = ours.recv()
    assert ours.recv() == "asked"
    assert asking.pid is not None
    os.kill(asking.pid, signal.SIGKILL)
    asking.join()
    assert worker.LIMITS > 1  # the asking side is to say that it hangs, if it can
    assert ends(number, 20.0)
