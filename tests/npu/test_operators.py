"""Reading torch_npu's operators: recorded versions, those in this process, and binding keywords to their schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from faops.backends.npu import operators
from faops.errors import UnavailableError

VERSIONS = operators.versions()
FUSION = "npu_fusion_attention"


@pytest.fixture
def define() -> Iterator[Any]:
    """Defines operators under npu:: for one test, in place of those before. Each returns its first argument plus 1."""
    libraries: list[Any] = []

    def clear() -> None:
        while libraries:
            libraries.pop()._destroy()
        for name in [name for name in vars(torch.ops.npu) if name.startswith("npu_")]:
            delattr(torch.ops.npu, name)

    def add(schema: str) -> None:
        clear()
        library: Any = torch.library.Library("npu", "FRAGMENT")
        libraries.append(library)
        library.define(schema)
        library.impl(schema.partition("(")[0], lambda x, **keywords: x + 1, "CompositeExplicitAutograd")

    yield add
    clear()
    operators.forget()


# --- recorded versions ------------------------------------------------------------------------------------------------


def test_every_recorded_schema_parses_and_names_its_operator() -> None:
    for name, entries in operators.recording()["operators"].items():
        for entry in entries:
            assert torch._C.parse_schema(f"npu::{entry['schema']}").name == f"npu::{name}"
            assert set(entry["versions"]) <= set(VERSIONS)


def test_a_version_has_one_schema_of_an_operator() -> None:
    for entries in operators.recording()["operators"].values():
        versions = [version for entry in entries for version in entry["versions"]]
        assert len(versions) == len(set(versions))


def test_versions_are_in_order() -> None:
    assert len(VERSIONS) == 9
    numbers = [tuple(int(part) for part in version.replace("post", "").split(".")) for version in VERSIONS]
    assert numbers == sorted(numbers)
    assert {"what", "how", "wheels", "read"} <= set(operators.recording()["provenance"])


def test_versions_differ_where_they_do() -> None:
    """The drift that is known: a version number says less than the schema."""
    having = {
        "sink": [version for version in VERSIONS if operators.recorded(version).takes(FUSION, "sink")],
        "softmax_layout": [
            version for version in VERSIONS if operators.recorded(version).takes(FUSION, "softmax_layout")
        ],
        "v3": [version for version in VERSIONS if operators.recorded(version).has(f"{FUSION}_v3")],
    }
    assert [version for version in VERSIONS if version not in having["sink"]] == ["2.1.0.post17", "2.5.1.post1"]
    assert [version for version in VERSIONS if version not in having["softmax_layout"]] == ["2.5.1.post1"]
    assert having["v3"] == VERSIONS[3:]
    for version in VERSIONS:
        assert operators.recorded(version).takes(f"{FUSION}_v2", "pse_type", "pre_tokens", "scale")
        assert operators.recorded(version).takes(f"{FUSION}_grad_v2", "pse_type", "softmax_max", "attention_in")


def test_an_unknown_version_is_named() -> None:
    with pytest.raises(KeyError, match=r"'9\.9'.*2\.14\.0"):
        operators.recorded("9.9")


# --- binding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "spelled"),
    [
        (FUSION, "pre_tokens", "pre_tockens"),
        (f"{FUSION}_v2", "pre_tockens", "pre_tokens"),
        (f"{FUSION}_grad", "scale", "scale_value"),
        ("npu_fused_infer_attention_score", "actual_seq_qlen", "actual_seq_lengths"),
        ("npu_fused_infer_attention_score", "head_num", "num_heads"),
        ("npu_fused_infer_attention_score_v2", "scale", "softmax_scale"),
        ("npu_fused_infer_attention_score_v2", "softmax_lse_flag", "return_softmax_lse"),
        ("npu_fused_infer_attention_score_v2", "sink", "learnable_sink"),
        ("npu_prompt_flash_attention", "pse", "pse_shift"),
    ],
)
def test_spellings_are_the_operators_own(name: str, given: str, spelled: str) -> None:
    offered = operators.recorded("2.13.0")
    value = object()
    assert offered.bind(name, {given: value}) == {spelled: value}


def test_what_an_older_version_lacks_is_left_out_only_if_it_changes_nothing() -> None:
    old = operators.recorded("2.5.1.post1")
    assert old.bind(FUSION, {"scale": 0.5, "softmax_layout": "", "sink": None}) == {"scale": 0.5}
    with pytest.raises(
        UnavailableError, match=r"npu_fusion_attention of torch_npu 2\.5\.1\.post1.* no argument softmax_layout.*'TND'"
    ):
        old.bind(FUSION, {"softmax_layout": "TND"})
    with pytest.raises(UnavailableError, match="no argument sink"):
        old.bind(FUSION, {"sink": torch.ones(2)})
    with pytest.raises(UnavailableError, match=r"2\.5\.1\.post1, recorded has no npu_fusion_attention_v3"):
        old.bind(f"{FUSION}_v3", {})


def test_an_argument_that_no_version_has_is_never_dropped() -> None:
    with pytest.raises(UnavailableError, match="no argument softcap"):
        operators.recorded("2.14.0").bind(FUSION, {"softcap": 0.0})


def test_lengths_become_what_the_operator_takes() -> None:
    offered = operators.recorded("2.13.0")
    assert offered.bind(FUSION, {"actual_seq_qlen": (3, 5)}) == {"actual_seq_qlen": (3, 5)}
    bound = offered.bind(f"{FUSION}_v3", {"actual_seq_qlen": (3, 5)})["actual_seq_qlen"]
    assert bound.device.type == "cpu" and bound.dtype == torch.int64 and bound.tolist() == [3, 5]


# --- this process -----------------------------------------------------------------------------------------------------


def test_without_torch_npu_the_newest_recorded_version_plans() -> None:
    assert operators.operators().origin == f"torch_npu {VERSIONS[-1]}, recorded"
    with pytest.raises(UnavailableError, match="torch_npu as loaded has no npu_fusion_attention"):
        operators.call(FUSION, torch.ones(1))


def test_what_is_loaded_counts(define: Any) -> None:
    define(f"{FUSION}(Tensor query, *, float scale_value=1.) -> Tensor")
    offered = operators.operators()
    assert offered.origin == "torch_npu as loaded"
    assert offered.takes(FUSION, "scale") and not offered.takes(FUSION, "sink")
    assert not offered.has(f"{FUSION}_v2")
    assert operators.call(FUSION, torch.ones(1), scale=0.5).item() == 2.0


def test_another_torch_npu_in_its_place_is_seen(define: Any) -> None:
    define(f"{FUSION}(Tensor query, *, float scale=1.) -> Tensor")
    offered = operators.operators()
    assert not offered.takes(FUSION, "sink")
    define(f"{FUSION}(Tensor query, *, Tensor? sink=None) -> Tensor")
    assert offered.takes(FUSION, "sink") and not offered.takes(FUSION, "scale")
    define("npu_rotary_mul(Tensor input) -> Tensor")
    assert not offered.has(FUSION)
