"""What the child of group npu does once torch_npu is there: a contract double of its operators, and made-up devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faops.backends.npu import operators
from faops.device import known
from faops.doctor.npu import child, probe
from tests.npu import double
from tests.npu.support import ascend

CPU = torch.device("cpu")


@pytest.fixture
def simulated() -> Iterator[AbstractContextManager[double.Handle]]:
    """CPU tensors are on a 910B whose operators are those of torch_npu 2.13.0."""
    with ascend():
        yield


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line.removeprefix(probe.MARK)) for line in lines if line.startswith(probe.MARK)]


def test_the_stages_are_those_that_are_waited_for() -> None:
    assert tuple(child.stages()) == probe.STAGES


def test_the_first_stage_that_raises_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Any]:
        raise OSError("line one\n  line two " + "x" * 1000)

    stages = {"import": lambda: {"version": "1"}, "operators": broken, "devices": lambda: {"devices": []}}
    monkeypatch.setattr(child, "stages", lambda: stages)
    child.main()
    first, second = told(capsys)
    assert first == {"stage": "import", "version": "1"}
    assert second["error"].startswith("OSError: line one line two xxx")
    assert len(second["error"]) < 600


def test_torch_npu_without_operators_is_a_failure() -> None:
    """Those recorded for planning are not taken for those of the package."""
    with pytest.raises(RuntimeError, match="registered none of its operators"):
        child.offered()


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("2.5.1.post1", {"attention sinks": "npu_fusion_attention takes no sink"}),
        ("2.6.0.post5", {}),
        ("2.14.0", {}),
    ],
)
def test_operators_of_several_versions(version: str, lacking: dict[str, str]) -> None:
    with ascend(version=version):
        found = child.offered()
    assert found["origin"] == "torch_npu as loaded"
    assert found["lacking"].items() >= lacking.items()
    assert bool(found["lacking"]) == bool(lacking)
    uses = {use for use, _, _ in child.NEEDS}
    assert set(found["served"]) | set(found["lacking"]) == uses
    assert not set(found["served"]) & set(found["lacking"])
    assert {"attention", "gradients"} <= set(found["served"])


def test_what_is_needed_names_operators_and_arguments_that_some_version_has() -> None:
    versions = [operators.recorded(version) for version in operators.versions()]
    for use, names, keywords in child.NEEDS:
        for name in names:
            assert any(there.has(name) for there in versions), f"{use}: {name}"
        assert any(there.takes(name, *keywords) for there in versions for name in names), use


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    there = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    monkeypatch.setattr(torch, "npu", there, raising=False)
    monkeypatch.setattr(torch, "device", lambda kind, index: (kind, index))
    monkeypatch.setattr(child, "detect", lambda device: {("npu", 0): known("910b"), ("npu", 1): known("310p")}[device])
    first, second = child.devices()["devices"]
    assert first == {"name": "Ascend 910B3", "soc": 223, "arch": "910B", "cores": 20, "bytes": 64 * 2**30}
    assert second["arch"] == "310P"
    there.is_available = lambda: False
    assert child.devices() == {"devices": []}


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize(("soc", "expected"), [("910B", True), ("310P", False)])
def test_bfloat16(monkeypatch: pytest.MonkeyPatch, soc: str, expected: bool, supported: bool) -> None:
    npu = SimpleNamespace(is_bf16_supported=lambda: supported)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    with ascend(soc=soc):
        found = child.bfloat16(CPU)
    assert (found["expected"], found["supported"], found["right"]) == (expected, supported, supported)


def test_a_wrong_product_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_bf16_supported=lambda: True), raising=False)
    usual = torch.Tensor.__matmul__

    def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = usual(left, right)
        return product + 1 if left.dtype == torch.bfloat16 else product

    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    assert child.bfloat16(CPU)["right"] is False


def test_attention_agrees_with_the_reference(simulated: None) -> None:
    tried = child.numerics(CPU)["tried"]
    assert {each["dtype"] for each in tried} == {"float16", "bfloat16"}
    assert {each["name"] for each in tried} == set(child.TRIALS)
    for each in tried:
        assert 0 < each["error"] <= each["allowed"] < 0.2, each


def test_a_310p_is_tried_without_bfloat16_and_with_the_operator_that_is_for_it() -> None:
    with ascend(soc="310P"):
        (tried,) = child.numerics(CPU)["tried"]
    assert (tried["name"], tried["dtype"]) == ("npu_prompt_flash_attention", "float16")
    assert 0 < tried["error"] <= tried["allowed"]


@pytest.mark.parametrize("spoilt", ["polarity", "scale", "nan"])
def test_wrong_attention_is_seen(monkeypatch: pytest.MonkeyPatch, simulated: None, spoilt: str) -> None:
    usual = operators.call

    def call(name: str, *tensors: torch.Tensor, **options: Any) -> Any:
        if spoilt == "polarity" and "atten_mask" in options:
            rows, keys = tensors[0].shape[2], tensors[1].shape[2]
            options |= {"atten_mask": ~options["atten_mask"][:rows, :keys], "sparse_mode": 1}
        if spoilt == "scale":
            options["scale"] *= 1.1
        results = usual(name, *tensors, **options)
        return (results[0] * float("nan"), *results[1:]) if spoilt == "nan" else results

    monkeypatch.setattr(operators, "call", call)
    wrong = [each["name"] for each in child.numerics(CPU)["tried"] if not each["error"] <= each["allowed"]]
    assert set(wrong) == ({"npu_fusion_attention, causal"} if spoilt == "polarity" else set(child.TRIALS))


@pytest.mark.full
def test_a_real_child_tells_of_a_torch_npu_that_crashes(tmp_path: Path) -> None:
    """Here a module by that name, with operators but without devices: it ends the process when it is asked for them."""
    (tmp_path / "torch_npu.py").write_text(
        "import os, signal, torch, types\n"
        "__version__ = '2.13.0'\n"
        "from tests.npu import double\n"
        "handle = double.install()\n"
        "torch.npu = types.SimpleNamespace(is_available=lambda: os.kill(os.getpid(), signal.SIGSEGV))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(probe.COMMAND, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode < 0
    lines = [json.loads(line.removeprefix(probe.MARK)) for line in done.stdout.splitlines()]
    assert [line["stage"] for line in lines] == ["import", "operators"]
    assert lines[0]["version"] == "2.13.0"
    assert lines[1]["lacking"] == {}
    assert probe.COMMAND[0] == sys.executable
