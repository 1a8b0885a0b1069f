"""`faops tune` for an Ascend NPU from end to end: what wins is stored for that NPU and served at the next call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from faops_cli.main import command_line

import faops
from faops import dispatch, registry
from faops.autotune import tuner
from faops.autotune.cache import TuningCache
from faops.device import detect
from faops.problem import AttentionProblem, parse_shape
from faops.registry import Config, Kernel
from tests.npu import double

from .conftest import OperatorClock

SHAPE = "b=1,sq=65,sk=65,h=4,hk=2,d=32,dtype=float16,causal=1"
Calls = list[tuple[str, dict[str, Any]]]


def layouts_cost(calls: Calls) -> float:
    """As if heads first were what this NPU likes best, and the operators for inference what it likes least."""
    slow = 1e-3 if any("infer" in name or "prompt" in name for name, _ in calls) else 0.0
    return 1e-3 + slow + (0.0 if any(given.get("input_layout") == "BNSD" for _, given in calls) else 1e-3)


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`faops tune --device npu`, where the NPU is a CPU with a double."""
    monkeypatch.setattr("faops_cli.devices.present", lambda: ["cpu", "npu"])
    monkeypatch.setattr("faops_cli.tune.torch_device", lambda name: {"npu": torch.device("cpu")}[name])

    def run(*arguments: str) -> Result:
        words = ["tune", "--device", "npu", "--no-isolate", *arguments]
        return CliRunner().invoke(command_line, words, prog_name="faops")

    return run


def test_the_winner_is_stored_and_served(npu: double.Handle, clock: OperatorClock, tune: Callable[..., Result]) -> None:
    clock.cost = layouts_cost
    done = tune("--shape", SHAPE, "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["problems"]
    assert (row["winner"]["kernel"], row["winner"]["config"]["layout"]) == ("npu.fusion_forward", "BNSD")
    assert row["default"]["config"]["layout"] == "as_given"
    assert row["speedup"] == pytest.approx(2.0)
    assert any("CANN chooses the tiles" in sentence for sentence in row["why"])
    (entry,) = TuningCache().entries()
    assert entry.device == detect("cpu").identity
    assert entry.device.startswith("ascend_910B_")
    assert {timing.kernel for timing in entry.timings} == {
        "npu.fusion_forward", "npu.infer_forward", "npu.prompt_forward",
    }  # fmt: skip

    plan = dispatch.plan(parse_shape(SHAPE), detect("cpu"))
    assert (plan.source, plan.config) == ("tuned", entry.config)
    npu.calls.clear()
    q, k, v = (torch.randn(1, 65, heads, 32, dtype=torch.float16) for heads in (4, 2, 2))
    faops.attention(q, k, v, causal=True)
    ((name, given),) = npu.calls
    assert name.startswith("npu_fusion_attention")
    assert given["input_layout"] == "BNSD"


def test_what_was_measured_is_not_measured_again(
    npu: double.Handle, clock: OperatorClock, tune: Callable[..., Result]
) -> None:
    tune("--shape", SHAPE)
    npu.calls.clear()
    again = tune("--shape", SHAPE)
    assert "nothing was measured" in again.stdout
    assert npu.calls == []


def test_a_wrong_config_does_not_win(npu: double.Handle, clock: OperatorClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is: it goes, and the next best wins."""
    clock.cost = layouts_cost
    kernel = registry.get("npu.fusion_forward")
    assert kernel is not None
    original = type(kernel).launch

    def launch(self: Kernel, inputs: Any, config: Config) -> Any:
        out, lse = original(self, inputs, config)
        return (out * 1.1 if config["operator"] == "v2" else out), lse

    monkeypatch.setattr(type(kernel), "launch", launch)
    (result,) = tuner.tune([parse_shape(SHAPE)], "cpu", isolate=False)
    assert result.entry is not None
    assert result.entry.config["operator"] in ("v1", "v3")
    wrong = [item["config"] for item in result.entry.dropped if item["kind"] == "wrong"]
    assert wrong
    assert all("operator=v2" in config for config in wrong)


def test_the_fastest_page_size(npu: double.Handle, clock: OperatorClock, tune: Callable[..., Result]) -> None:
    """Pages that the operator does not take cost a gathering; of the others this NPU likes 256 tokens."""

    def cost(calls: Calls) -> float:
        sizes = [given["block_size"] for _, given in calls if given.get("block_size")]
        return 1e-3 * (len(calls) + (0.0 if 256 in sizes else 1.0))

    clock.cost = cost
    shape = "op=decode,layout=paged,b=2,sq=1,sk=768,h=4,hk=2,d=64,dtype=float16,append=1,page_size="
    shapes = [word for size in (96, 128, 256) for word in ("--shape", f"{shape}{size}")]
    done = tune(*shapes, "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["page_sizes"]
    assert found["fastest"] == 256
    assert found["above_noise"]
    assert found["sizes"][0]["page_size"] == 256
    assert {row["page_size"] for row in found["sizes"]} == {96, 128, 256}


@pytest.mark.parametrize("shape", [f"{SHAPE},need_lse=1", "b=2,sq=1,sk=128,h=4,d=64,op=decode,append=1,dtype=bfloat16"])
def test_other_problems(npu: double.Handle, clock: OperatorClock, shape: str) -> None:
    (result,) = tuner.tune([parse_shape(shape)], "cpu", isolate=False)
    assert result.status == "tuned", result.message
    assert result.entry is not None
    assert result.entry.kernel.startswith("npu.")


def test_training(npu: double.Handle, clock: OperatorClock) -> None:
    asked = AttentionProblem(op="backward", dtype="bfloat16", batch=2, seqlen_q=64, seqlen_k=64, heads_q=2, heads_kv=2,
                             head_dim=32, head_dim_v=32, need_lse=True)  # fmt: skip
    (result,) = tuner.tune([asked], "cpu", isolate=False)
    assert result.entry is not None
    assert result.entry.kernel == "npu.fusion_backward"
    assert all(item["kind"] != "wrong" for item in result.entry.dropped)
