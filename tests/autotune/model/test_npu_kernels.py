"""What the npu kernels' configs add to an operator: copies, masks and biases written out, keys gathered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from faops import registry
from faops.autotune.model import predict
from faops.autotune.model.predict import of_footprint
from faops.backends.npu import footprint
from faops.device import known
from faops.footprint import Footprint
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

from ...npu.support import ascend

NPU = known("910b")
CAUSAL = Band(-1, 0)
ASKED = AttentionProblem(dtype="float16", batch=2, seqlen_q=96, seqlen_k=160, heads_q=8, heads_kv=2, head_dim=64,
                         head_dim_v=48, band=CAUSAL)  # fmt: skip
PLAIN = Config(operator="v2", layout="as_given", mask="compressed", inner_precise=0)
Q, K, V, OUT = 96 * 8 * 64, 160 * 2 * 64, 160 * 2 * 48, 96 * 8 * 48  # numbers of one sequence
CACHED = AttentionProblem(op="decode", dtype="float16", batch=4, seqlen_q=1, seqlen_k=1024, heads_q=8, heads_kv=2,
                          head_dim=128, head_dim_v=128, layout="paged", page_size=48)  # fmt: skip
IN_PLACE = Config(operator="v2", layout="BSND", inner_precise=0, keys="in_place", gather=1 << 18)


def parts(found: Footprint) -> tuple[float, int, Footprint]:
    """(bytes around the operator, operations around it, the operator)."""
    *around, operator = found.parts()
    assert len(around) <= 1
    assert all(part.threads == 0 and part.shared_bytes == 0 for part in found.parts())  # a library's
    return (around[0].traffic, around[0].launches, operator) if around else (0.0, 0, operator)


def forward(asked: AttentionProblem = ASKED, step: int = 1, **config: Any) -> tuple[float, int, Footprint]:
    return parts(footprint.forward(asked, NPU, Config({**PLAIN, **config}), step))


# ------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("layout", ["as_given", "BSND", "BSH", "TND"])
def test_tensors_that_lie_as_they_should_cost_nothing(layout: str) -> None:
    assert forward(layout=layout)[:2] == (0.0, 0)


def test_transposes_are_counted() -> None:
    assert forward(layout="BNSD")[:2] == (2 * 2 * 2 * (Q + K + V + OUT), 4)
    assert forward(layout="SBH")[:2] == (2 * 2 * 2 * (Q + K + V + OUT), 4)


@pytest.mark.parametrize(
    ("layout", "changes", "moved"),
    [
        ("SBH", {"batch": 1}, 0),
        ("BNSD", {"heads_q": 2, "heads_kv": 1, "batch": 1}, 2 * 96 * (64 + 48)),  # one head of keys stays where it is
        ("BNSD", {"seqlen_q": 1, "batch": 1}, 160 * 2 * (64 + 48)),
        ("SBH", {"seqlen_q": 1}, 2 * 160 * 2 * (64 + 48)),
    ],
)
def test_axes_of_one_need_no_transpose(layout: str, changes: dict[str, int], moved: int) -> None:
    traffic, operations, _ = forward(replace(ASKED, **changes), layout=layout)  # type: ignore[arg-type]
    assert traffic == 2 * 2 * moved
    assert operations == (2 if moved else 0)


def test_backward_moves_gradients_too() -> None:
    asked = replace(ASKED, op="backward", need_lse=True)
    given = parts(footprint.backward(asked, NPU, PLAIN))
    moved = parts(footprint.backward(asked, NPU, Config({**PLAIN, "layout": "BNSD"})))
    assert moved[0] - given[0] == 2 * 2 * 2 * 2 * (Q + K + V + OUT)
    assert moved[1] - given[1] == 8
    assert given[0] == 2 * 8 * 4 * 2 * 8 * 96  # lse goes to eight lanes of two results


def test_head_dims_are_padded_to_one() -> None:
    assert forward(step=16)[:2] == (2 * 2 * (160 * 2 + 96 * 8) * (48 + 64), 2)  # v and out
    assert forward(replace(ASKED, head_dim=40, head_dim_v=40), 16)[1] == 4
    assert forward(replace(ASKED, head_dim_v=64), 16)[1] == 0


# ------------------------------------------------------------------------------------------ masks and biases


def visible(asked: AttentionProblem) -> int:
    return asked.batch * asked.heads_q * asked.band.visible_pairs(asked.seqlen_q, asked.seqlen_k)


def test_a_compressed_mask_skips_what_it_hides() -> None:
    operator = forward()[2]
    assert operator.matrix_flops == 2 * visible(ASKED) * (64 + 48) == ASKED.flops()
    assert operator.exponentials == visible(ASKED)
    assert operator.memory - forward(replace(ASKED, band=Band()), mask="none")[2].memory == 2048 * 2048


@pytest.mark.parametrize(("band", "skips"), [(CAUSAL, True), (Band(70, 0), True), (Band(20, 0), False)])
def test_a_whole_mask_skips_what_can_be_told_beside_it(band: Band, skips: bool) -> None:
    asked = replace(ASKED, band=band)
    operator = forward(asked, mask="full")[2]
    assert operator.exponentials == (visible(asked) if skips else 2 * 8 * 96 * 160)
    assert forward(asked, mask="full")[:2] == (0.0, 0)  # it depends on lengths alone and is kept
    assert operator.memory == asked.bytes_moved() + 2 * 8 * 4 * 2 * 8 * 96 + 96 * 160


def test_the_callers_mask_is_written_out_and_skips_nothing() -> None:
    asked = replace(ASKED, mask="b.mn", band=Band())
    traffic, operations, operator = forward(asked, mask="full")
    assert (traffic, operations) == (3 * 2 * 96 * 160, 2)
    assert operator.matrix_flops == 2 * 2 * 8 * 96 * 160 * (64 + 48)
    by_head = forward(replace(asked, mask="bhmn"), mask="full")
    assert by_head[0] == 8 * traffic
    banded = forward(replace(asked, band=CAUSAL), mask="full")
    assert banded[0] == 2 * traffic
    assert banded[2].exponentials == operator.exponentials == 2 * 8 * 96 * 160


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"bias": ".hmn"}, 8 * 96 * 160),
        ({"bias": "...n"}, 8 * 160),
        ({"bias": "b.mn"}, 2 * 8 * 96 * 160),
        ({"alibi": True}, 8 * 96 * 160),
        ({"alibi": True, "seqlen_q": 160}, 0),
        ({"alibi": True, "seqlen_q": 160, "bias": ".h.n"}, 8 * 160 * 160),
    ],
)
def test_biases_are_written_out_for_all_heads(changes: dict[str, Any], size: int) -> None:
    asked = replace(ASKED, **changes)
    traffic, operations, operator = forward(asked)
    bare = forward(replace(asked, bias="", alibi=False))
    passes = traffic / (2 * size) if size else 0
    assert passes == ((13 if asked.alibi and size else 5) if size else 0)
    assert (operations > 0) is (size > 0)
    assert operator.memory - bare[2].memory == 2 * size


def test_float32_does_not_use_the_matrix_units() -> None:
    operator = forward(replace(ASKED, dtype="float32"))[2]
    assert operator.matrix_flops == 0
    assert operator.vector_flops == ASKED.flops()


# ------------------------------------------------------------------------------------------ caches

CACHE_BYTES = 2 * 4 * 1024 * 2 * 256


def decode(asked: AttentionProblem = CACHED, reads_pages: bool = True, **config: Any) -> tuple[float, int, Footprint]:
    return parts(footprint.decode(asked, NPU, Config({**IN_PLACE, **config}), reads_pages))


def test_keys_are_read_in_place_or_gathered() -> None:
    assert decode()[:2] == (0.0, 0)
    for found in (decode(reads_pages=False), decode(keys="gathered")):
        assert found[0] == 2 * CACHE_BYTES
        assert found[2].memory == decode()[2].memory >= CACHE_BYTES
    assert decode(replace(CACHED, layout="dense", page_size=0), reads_pages=False)[:2] == (0.0, 0)


def test_parts_are_put_together() -> None:
    whole, four = decode(keys="gathered"), decode(keys="gathered", gather=CACHE_BYTES // 1024 // 4)
    assert four[0] - whole[0] == 5 * 2 * 4 * 8 * 128
    assert four[1] > whole[1] + 3


def test_new_keys_and_rotations_are_operations() -> None:
    counts = [decode(replace(CACHED, append=append, rotary=rotary))[1] for append, rotary in
              ((False, ""), (True, ""), (False, "half"), (True, "half"))]  # fmt: skip
    assert counts[0] == 0
    assert counts[3] - counts[1] == 2 * counts[2] > 0


# ------------------------------------------------------------------------------------------ predictions


def test_what_costs_more_is_predicted_to_take_longer() -> None:
    big = replace(ASKED, batch=8, seqlen_q=2048, seqlen_k=2048, head_dim=128, head_dim_v=128, dtype="bfloat16")

    def seconds(asked: AttentionProblem, **config: Any) -> float:
        return of_footprint(footprint.forward(asked, NPU, Config({**PLAIN, **config})), NPU).seconds

    assert seconds(big) < seconds(big, layout="BNSD")
    assert seconds(big) < seconds(replace(big, mask="b.mn"), mask="full")
    gathered, in_place = (of_footprint(footprint.decode(CACHED, NPU, IN_PLACE, reads), NPU) for reads in (False, True))
    assert in_place.seconds < gathered.seconds
    assert seconds(big) >= big.flops() / NPU.matrix_flops  # nothing beats the roofline


KINDS = {
    "npu.fusion_forward": ASKED,
    "npu.fusion_backward": replace(ASKED, op="backward", need_lse=True),
    "npu.infer_forward": replace(ASKED, head_dim_v=64),
    "npu.prompt_forward": replace(ASKED, head_dim_v=64),
    "npu.infer_decode": CACHED,
    "npu.incre_decode": CACHED,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kernel_counts(name: str) -> None:
    kernel: Kernel | None = registry.get(name)
    assert kernel is not None
    with ascend():
        assert kernel.check(KINDS[name], NPU)
        configs = kernel.configs(KINDS[name], NPU)
        predictions = [predict(kernel, KINDS[name], NPU, config) for config in configs]
        default = predict(kernel, KINDS[name], NPU, kernel.default_config(KINDS[name], NPU))
    assert all(one is not None and one.seconds > 0 and not one.obstacle for one in predictions)
    assert default is not None
    assert default.seconds == min(one.seconds for one in predictions if one is not None)
