"""Making recordings: marks, steps, one profiler at a time, and torch_npu's profiler as its user guide calls it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import faops
from faops import dispatch, profile, registry
from faops.problem import AttentionProblem
from faops.profile import TraceError, ranges, recording
from tests.profile.support import CPU, SAMPLES, shown

NPU: Any = types.SimpleNamespace(type="npu")


def inputs() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(1, 33, 2, 16) for _ in range(3))


# --- marks ------------------------------------------------------------------------------------------------------------


def test_a_mark_says_what_was_asked() -> None:
    problem = AttentionProblem(
        op="backward", dtype="bfloat16", batch=3, seqlen_q=65, seqlen_k=129, heads_q=8, heads_kv=2, head_dim=96,
        head_dim_v=64, need_lse=True,
    )  # fmt: skip
    assert ranges.parse(ranges.name_of("triton.backward", problem)) == ("triton.backward", problem)
    for other in ("aten::bmm", "faops::attention", "faops::x op=sideways", "faops::x hello"):
        assert ranges.parse(other) is None


def test_marks_list_the_launches_and_leave_nothing() -> None:
    q, k, v = inputs()
    faops.attention(q, k, v)  # has a plan that repeated calls find
    with profile.marks() as launches:
        faops.attention(q, k, v, backend="torch.blockwise")
        faops.attention(q, k, v)
        faops.attention(q, k, v)
        assert [kernel for kernel, _ in launches] == ["torch.blockwise_forward", *["torch.sdpa_forward"] * 2]
    assert launches[0][1].seqlen_q == 33
    faops.attention(q, k, v)
    assert len(launches) == 3
    assert not any("launch" in vars(kernel) for kernel in registry.kernels())


def test_marks_go_when_the_program_fails() -> None:
    with pytest.raises(ZeroDivisionError), profile.marks():
        raise ZeroDivisionError
    assert not any("launch" in vars(kernel) for kernel in registry.kernels())
    dispatch.forget()


def test_marks_may_be_nested() -> None:
    q, k, v = inputs()
    with profile.marks() as outer, profile.marks() as inner:
        faops.attention(q, k, v)
    assert len(outer) == 1 and inner == []
    assert not any("launch" in vars(kernel) for kernel in registry.kernels())


def test_marks_make_a_profiler_of_ones_own_readable(tmp_path: Path) -> None:
    q, k, v = inputs()
    with profile.marks(), torch.profiler.profile(record_shapes=True) as profiler:
        faops.attention(q, k, v, backend="torch.blockwise")
    profiler.export_chrome_trace(str(tmp_path / "mine.json"))
    assert profile.analyse(profile.read(tmp_path / "mine.json")).verdict == "tiled"


# --- torch.profiler ---------------------------------------------------------------------------------------------------


def test_warmup_is_not_recorded(tmp_path: Path) -> None:
    seen = []

    def program() -> None:
        seen.append(1)
        torch.softmax(torch.randn(3, 3), -1)

    timeline = profile.record(program, CPU, tmp_path / "new" / "folder", steps=3, warmup=2)
    assert len(seen) == 5
    assert sum(event.name == "aten::_softmax" for event in timeline.events) == 3
    assert (tmp_path / "new" / "folder" / "trace.json").is_file()


def test_a_second_profiler_is_refused(tmp_path: Path) -> None:
    def program() -> None:
        with torch.profiler.profile():
            torch.ones(3)

    with pytest.raises(TraceError, match="profiler itself"):
        profile.record(program, CPU, tmp_path)
    with torch.profiler.profile() as profiler:  # afterwards they work as before
        torch.ones(3)
    assert profiler.key_averages()


def test_errors_of_the_program_come_through(tmp_path: Path) -> None:
    def program() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        profile.record(program, CPU, tmp_path)
    assert shown(lambda: torch.ones(3), tmp_path).verdict == "no attention"  # the next recording works


# --- torch_npu.profiler -----------------------------------------------------------------------------------------------


class FakeProfiler(types.ModuleType):
    """torch_npu.profiler with the names and keywords of its user guide; writes ``sample`` when it ends."""

    ProfilerActivity = types.SimpleNamespace(CPU="CPU", NPU="NPU")
    ProfilerLevel = types.SimpleNamespace(Level_none=-1, Level0=0, Level1=1, Level2=2)
    AiCMetrics = types.SimpleNamespace(AiCoreNone="none", PipeUtilization="pipes")

    def __init__(self, sample: str) -> None:
        super().__init__("torch_npu.profiler")
        self.sample = sample
        self.asked: dict[str, Any] = {}
        self.log: list[str] = []

    def _ExperimentalConfig(  # noqa: N802
        self, *, profiler_level: int = 0, aic_metrics: str = "none", data_simplification: bool = True,
        l2_cache: bool = False, record_op_args: bool = False, export_type: object = "text",
    ) -> dict[str, Any]:  # fmt: skip
        return {"profiler_level": profiler_level, "aic_metrics": aic_metrics}

    def schedule(self, wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0) -> dict[str, int]:
        return {"wait": wait, "warmup": warmup, "active": active, "repeat": repeat}

    def tensorboard_trace_handler(
        self, dir_name: str, worker_name: str | None = None, analyse_flag: bool = True
    ) -> Path:
        assert analyse_flag
        return Path(dir_name)

    def profile(
        self, *, activities: list[str], schedule: dict[str, int], on_trace_ready: Path, record_shapes: bool = False,
        profile_memory: bool = False, with_stack: bool = False, experimental_config: dict[str, Any],
    ) -> FakeProfiler:  # fmt: skip
        self.asked = {"activities": activities, "schedule": schedule, "shapes": record_shapes, **experimental_config}
        self.folder = on_trace_ready
        return self

    def __enter__(self) -> FakeProfiler:
        self.log.append("start")
        return self

    def __exit__(self, *error: object) -> None:
        self.log.append("stop")
        if self.sample:
            folder = self.folder / "host_1_20260101_ascend_pt" / "ASCEND_PROFILER_OUTPUT"
            folder.mkdir(parents=True)
            (folder / "kernel_details.csv").write_text((SAMPLES / self.sample).read_text())

    def step(self) -> None:
        self.log.append("step")


@pytest.fixture
def fake_npu(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    fake = FakeProfiler("fused_training.csv")
    package = types.ModuleType("torch_npu")
    package.profiler = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", package)
    monkeypatch.setattr(recording, "synchronise", lambda device: fake.log.append("synchronise"))
    return fake


def test_torch_npu_is_asked_as_documented(fake_npu: FakeProfiler, tmp_path: Path) -> None:
    link = tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    timeline = profile.record(lambda: fake_npu.log.append("call"), NPU, link, steps=2, warmup=1)
    assert fake_npu.asked == {
        "activities": ["CPU", "NPU"],
        "schedule": {"wait": 0, "warmup": 0, "active": 2, "repeat": 1},
        "shapes": True,
        "profiler_level": 1,  # with level 0 there are no shapes
        "aic_metrics": "none",
    }
    recorded = ["call", "synchronise", "step"]
    assert fake_npu.log == ["call", "synchronise", "start", *recorded, *recorded, "stop"]
    assert fake_npu.folder == tmp_path / "real"  # torch_npu takes no links
    assert timeline.device == "npu" and profile.analyse(timeline).verdict == "fused"


def test_tiled_launches_show_on_an_npu(fake_npu: FakeProfiler, tmp_path: Path) -> None:
    fake_npu.sample = "header_only.csv"
    q, k, v = inputs()
    program = lambda: faops.attention(q, k, v, backend="torch.blockwise")  # noqa: E731
    report = profile.analyse(profile.record(program, NPU, tmp_path, steps=3, warmup=2))
    assert report.verdict == "tiled"
    assert [(row.name, row.calls) for row in report.rows] == [("torch.blockwise_forward", 3)]


def test_torch_npu_that_wrote_nothing(fake_npu: FakeProfiler, tmp_path: Path) -> None:
    fake_npu.sample = ""
    with pytest.raises(TraceError, match=r"no kernel_details\.csv"):
        profile.record(lambda: None, NPU, tmp_path)


def test_torch_npu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    monkeypatch.setattr(recording, "synchronise", lambda device: None)
    with pytest.raises(TraceError, match="torch_npu cannot be imported"):
        profile.record(lambda: None, NPU, tmp_path)
