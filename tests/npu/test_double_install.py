"""Installing the contract double: every recorded version, one after another, in one process."""

from __future__ import annotations

import pytest
import torch

from faops.backends.npu import operators
from tests.npu import double
from tests.npu.double.install import IMPLEMENTATIONS
from tests.npu.double_calls import random_qkv


@pytest.mark.parametrize("version", double.VERSIONS)
def test_every_version_has_its_schemas(version: str) -> None:
    with double.install(version):
        for operator in double.OPERATORS:
            there = getattr(torch.ops.npu, operator, None)
            schema = double.recorded(version).get(operator)
            assert (there is None) == (schema is None), operator
            if schema is not None:
                assert str(there.default._schema) == str(torch._C.parse_schema(f"npu::{schema}"))
    assert not any(hasattr(torch.ops.npu, operator) for operator in double.OPERATORS)


def test_every_operator_is_implemented() -> None:
    assert set(IMPLEMENTATIONS) == set(double.OPERATORS)


def test_another_version_in_the_same_process() -> None:
    """PyTorch keeps the operators that it has looked up; another version must not be served those."""
    q, k, v = random_qkv()
    for version, taken in (("2.13.0", True), ("2.5.1", False), ("2.13.0", True)):
        with double.install(version):
            call = torch.ops.npu.npu_fusion_attention
            call(q, k, v, 4, "BSND")
            if taken:
                call(q, k, v, 4, "BSND", sink=torch.zeros(4))
            else:
                with pytest.raises(RuntimeError, match="sink"):
                    call(q, k, v, 4, "BSND", sink=torch.zeros(4))


def test_short_versions() -> None:
    assert double.recorded("2.6.0") == double.recorded("2.6.0.post5")
    with pytest.raises(ValueError, match="not recorded"):
        double.recorded("2.99")


def test_calls_are_recorded_with_their_defaults() -> None:
    q, k, v = random_qkv()
    with double.install() as handle:
        torch.ops.npu.npu_fusion_attention(q, k, v, 4, "BSND", scale=0.5)
        (name, arguments), = handle.calls  # fmt: skip
    assert name == "npu_fusion_attention" and handle.count(name) == 1 and handle.count("npu_rotary_mul") == 0
    assert arguments["query"] is q and arguments["scale"] == 0.5
    assert arguments["pre_tockens"] == 2147483647 and arguments["atten_mask"] is None


def test_an_unknown_keyword_is_refused() -> None:
    q, k, v = random_qkv()
    with double.install(), pytest.raises(RuntimeError, match="pre_tokens"):
        torch.ops.npu.npu_fusion_attention(q, k, v, 4, "BSND", pre_tokens=3)  # spelled otherwise in this operator


def test_results_lie_in_poisoned_memory() -> None:
    q, k, v = (t[0] for t in random_qkv(batch=1, rows=9, keys=9))
    with double.install():
        out, most, *_ = torch.ops.npu.npu_fusion_attention(
            q, k, v, 4, "TND", actual_seq_qlen=[4], actual_seq_kvlen=[9]
        )  # fmt: skip
    assert out[4:].isnan().all() and most.flatten()[4 * 4 * 8 :].isnan().all()


def test_the_library_sees_what_is_installed(npu: double.Handle) -> None:
    assert operators.operators().has("npu_fusion_attention_v3")
    assert "loaded" in operators.operators().origin


@pytest.mark.parametrize("npu", ["2.5.1"], indirect=True)
def test_the_fixture_takes_a_version(npu: double.Handle) -> None:
    assert not operators.operators().has("npu_fusion_attention_v3")
    assert npu.version == "2.5.1"


@pytest.mark.parametrize("npu", [{"soc": "310P", "version": "2.6.0"}], indirect=True)
def test_the_fixture_takes_a_machine(npu: double.Handle) -> None:
    from faops.device import detect

    assert npu.machine.soc == "310P" and detect("cpu").arch == "310P"
