"""Chrome traces written by hand: what a GPU's profiler records, and files that are broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from faops import profile
from faops.problem import AttentionProblem
from faops.profile import TraceError, ranges
from tests.profile.support import contiguous, kernel, operator, read, written

SHAPE = (2, 8, 512, 64)
FLASH = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>(pytorch_flash::Flash_fwd_params)"


def unfused(softmax: str = "aten::_softmax", shape: tuple[int, ...] = (2, 8, 512, 512)) -> list[dict[str, object]]:
    """Attention of three operators; between the first two another operator, around the last a composite one."""
    return [
        operator("aten::bmm", 0, 10, 1, (16, 512, 64), (16, 64, 512)),
        operator("aten::mul", 12, 14, 2, (2, 8, 512, 512)),
        operator(softmax, 20, 24, 3, shape),
        operator("aten::matmul", 30, 50, 4, (2, 8, 512, 512), SHAPE),
        operator("aten::bmm", 32, 48, 5, (16, 512, 512), (16, 512, 64)),
    ]


# --- a GPU ------------------------------------------------------------------------------------------------------------


def test_an_operator_gets_the_time_of_its_kernels(tmp_path: Path) -> None:
    report = read(
        tmp_path,
        operator("aten::scaled_dot_product_attention", 0, 100, 1, SHAPE, SHAPE, SHAPE),
        operator("aten::_scaled_dot_product_flash_attention", 5, 90, 2, SHAPE, SHAPE, SHAPE),
        operator("aten::_flash_attention_forward", 10, 80, 3, SHAPE, SHAPE, SHAPE),
        kernel(FLASH, 200, 37.5, number=3),
    )
    assert report.verdict == "fused" and report.device == "cuda"
    (row,) = report.rows
    assert row.name == "aten::_scaled_dot_product_flash_attention" and row.calls == 1
    assert row.seconds == pytest.approx(37.5e-6)
    assert row.kernels == {FLASH: 1}
    assert report.traffic.counted == 4 * 2 * 8 * 512 * 64 * 2


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("attention_forward", "faops"),
        ("attention_decode", "faops"),
        (FLASH, "FlashAttention 2"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>", "FlashAttention 3"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)", "CUTLASS"),
        ("cudnn_generated_fort_native_sdpa_sm80_flash_fprop_wmma_f16_knob_7_64x64x64_4x1x1_kernel0_0", "cuDNN"),
        ("void vllm::paged_attention_v1_kernel<unsigned short, unsigned short, 64, 16, 128>", "vLLM"),
        ("triton_tem_fused_flex_attention_0", "FlexAttention"),
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<...>", "FlashInfer"),
    ],
)
def test_kernels_that_no_operator_launched(name: str, label: str, tmp_path: Path) -> None:
    report = read(tmp_path, kernel(name, 0, 10.0), kernel(name, 20, 10.0), kernel("some_other_kernel", 40, 5.0))
    assert report.verdict == "fused"
    (row,) = report.rows
    assert row.calls == 2 and label in row.label and row.seconds == pytest.approx(20e-6)
    assert report.traffic.unknown == 2


def test_unfused_kernels_of_a_graph_are_known_by_their_order(tmp_path: Path) -> None:
    entries = [
        kernel("ampere_fp16_s16816gemm_fp16_128x64_ldg8_f2f_tn", 0, 5),
        kernel("void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 9, false, false>", 6, 2),
        kernel("ampere_fp16_s16816gemm_fp16_64x64_sliced1x2_ldg8_f2f_nn", 9, 5),
    ]
    report = read(tmp_path, *entries)
    assert report.verdict == "not fused" and not report.patterns[0].certain
    assert read(tmp_path, *entries, kernel(FLASH, 20, 9)).verdict == "fused"  # then they may be anything


def test_kernels_of_log_softmax_are_none(tmp_path: Path) -> None:
    for name in ("triton_per_fused__log_softmax_3", "void at::native::cunn_LogSoftMaxForward<4, float, float, float>"):
        gemms = [kernel("sm80_xmma_gemm_f32f32", start, 5) for start in (0, 20)]
        assert read(tmp_path, gemms[0], kernel(name, 10, 2), gemms[1]).verdict == "no attention"


def test_a_backward_writes_the_gradients_of_q_k_and_v(tmp_path: Path) -> None:
    """PyTorch's is given dout first, an NPU's last; only 300 rows by 512 keys may be a mask."""
    rows, keys = (2, 8, 300, 64), (2, 8, 512, 64)
    masks = [
        operator("aten::triu", start, start + 1, start, shape) for start, shape in ((1, (300, 300)), (3, (300, 512)))
    ]
    for name, shapes in (
        ("aten::_scaled_dot_product_flash_attention_backward", (rows, rows, keys, keys, rows)),
        ("npu::npu_fusion_attention_grad", (rows, keys, keys, rows, rows)),
    ):
        forward = operator("aten::_flash_attention_forward", 5, 9, 8, rows, keys, keys)
        both = read(tmp_path, *masks, forward, operator(name, 10, 19, 9, *shapes))
        assert both.traffic.counted == 2 * 2 * 8 * 64 * ((2 * 300 + 2 * 512) + (4 * 300 + 4 * 512))
        assert [(mask.shape, mask.calls) for mask in both.masks] == [((300, 512), 1)]


def test_what_is_broadcast_is_moved_once(tmp_path: Path) -> None:
    mask = {"Input Strides": [contiguous(SHAPE)] * 3 + [[0, 0, 512, 1]]}
    shapes = (SHAPE, SHAPE, SHAPE, (2, 8, 512, 512))
    report = read(tmp_path, operator("aten::_efficient_attention_forward", 0, 9, 1, *shapes, **mask))
    assert report.traffic.counted == 2 * (4 * 2 * 8 * 512 * 64 + 512 * 512)


def test_kernels_of_compiled_code_have_no_shapes(tmp_path: Path) -> None:
    first, scale, _, *second = unfused()
    softmax = {**scale, "name": "triton_per_fused__softmax_mul_0", "ts": 20, "args": {"External id": 3}}
    report = read(tmp_path, first, softmax, *second)
    assert report.verdict == "not fused"
    assert not report.patterns[0].certain


def test_what_runs_while_code_is_compiled_does_not_count(tmp_path: Path) -> None:
    """torch.compile traces the program, and tries kernels."""
    compiling = operator("_compile.compile_inner (dynamo_timed)", -5, 60, 90)
    tried = kernel("triton_per_fused__softmax_0", 10, 3.0, number=3)
    assert read(tmp_path, compiling, *unfused(), tried).verdict == "no attention"
    running = operator("Torch-Compiled Region: 0/0", -5, 60, 90)
    report = read(tmp_path, compiling, running | {"tid": 2}, *({**entry, "tid": 2} for entry in unfused()))
    assert [row.calls for row in report.rows] == [1]


@pytest.mark.parametrize(
    "name",
    ["flash_attn::_flash_attn_forward", "flash_attn_3::fwd", "xformers_flash::flash_fwd",
     "aten::_efficient_attention_forward", "aten::_scaled_dot_product_cudnn_attention",
     "npu::npu_fusion_attention_v3", "npu::npu_fused_infer_attention_score_v2"],
)  # fmt: skip
def test_operators_of_libraries(name: str, tmp_path: Path) -> None:
    inside = operator("aten::bmm", 2, 3, 2, (16, 512, 64), (16, 64, 512))  # is the operator's own affair
    report = read(tmp_path, operator(name, 0, 10, 1, SHAPE, SHAPE, SHAPE), inside)
    assert report.verdict == "fused" and report.rows[0].label


# --- what belongs together --------------------------------------------------------------------------------------------


def test_parts_in_order_are_attention(tmp_path: Path) -> None:
    report = read(tmp_path, *unfused())
    assert report.verdict == "not fused" and report.patterns[0].certain
    assert report.rows[0].seconds == pytest.approx((10 + 2 + 4 + 16) * 1e-6)


def test_parts_of_other_threads_are_not(tmp_path: Path) -> None:
    entries = unfused()
    entries[2] = {**entries[2], "tid": 2}
    assert read(tmp_path, *entries).verdict == "no attention"


@pytest.mark.parametrize("shape", [(2, 8, 512, 256), (2, 4, 512, 512), (512, 512)])
def test_a_softmax_of_another_shape_is_not(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert read(tmp_path, *unfused(shape=shape)).verdict == "no attention"


def test_a_first_product_of_another_size_is_not(tmp_path: Path) -> None:
    first, *rest = unfused()
    other = operator("aten::bmm", 0, 10, 1, (8, 512, 64), (8, 64, 512))
    assert read(tmp_path, first, *rest).verdict == "not fused"
    assert read(tmp_path, other, *rest).verdict == "no attention"


def test_a_softmax_without_a_second_product_is_not(tmp_path: Path) -> None:
    assert read(tmp_path, *unfused()[:3]).verdict == "no attention"
    assert read(tmp_path, *unfused()[2:]).verdict == "no attention"


def test_log_softmax_is_not(tmp_path: Path) -> None:
    assert read(tmp_path, *unfused(softmax="aten::_log_softmax")).verdict == "no attention"


def test_products_on_both_sides_of_a_fused_call_are_not(tmp_path: Path) -> None:
    fused = operator("aten::_flash_attention_forward", 25, 28, 9, SHAPE, SHAPE, SHAPE)
    assert read(tmp_path, *unfused(), fused).verdict == "fused"


def test_far_apart_is_not(tmp_path: Path) -> None:
    between = [operator("aten::relu", 15 + 0.01 * step, 15.005 + 0.01 * step, 20, (8, 8)) for step in range(100)]
    assert read(tmp_path, *unfused(), *between).verdict == "no attention"


def test_a_marked_launch_is_one_call_whatever_it_calls(tmp_path: Path) -> None:
    problem = AttentionProblem(dtype="float16", batch=2, seqlen_q=512, seqlen_k=512, heads_q=8, heads_kv=8)
    for name, verdict in (("torch.blockwise_forward", "tiled"), ("triton.forward", "fused"), ("mine.x", "not fused")):
        mark = operator(ranges.name_of(name, problem), -1, 60, 90) | {"cat": "user_annotation"}
        report = read(tmp_path, mark, *unfused(), kernel("attention_forward", 100, 8.0, number=5))
        assert report.verdict == verdict
        assert [row.calls for row in report.rows] == [1]
        assert bool(report.traffic.modelled) == (verdict != "not fused")


def test_marks_of_others_are_looked_into(tmp_path: Path) -> None:
    for name in ("faops::attention", "faops::x sq=?", "my range"):
        mark = operator(name, -1, 60, 90) | {"cat": "user_annotation"}
        assert read(tmp_path, mark, *unfused()).verdict == "not fused"


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_compressed_trace_is_read(tmp_path: Path) -> None:
    plain = written(tmp_path / "a.json", unfused())
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert profile.analyse(profile.read(tmp_path / "b.json.gz")).verdict == "not fused"


def test_shapes_need_not_be_there(tmp_path: Path) -> None:
    entries = unfused()
    for entry in entries:
        entry["args"] = {"External id": 1}
    report = read(tmp_path, *entries)
    assert report.verdict == "not fused" and not report.shapes_known and not report.patterns[0].certain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a complete JSON file"),
        (b'{"traceEvents": [{"ph": "X"', "not a complete JSON file"),
        (b"\x1f\x8b\x08\x00cut", "cannot be read"),
        (b"\xff\xfe\xfa", "not a complete JSON file"),
        (b"3", "not a trace"),
        (b'{"traceEvents": 5}', "not a trace"),
        (b'{"traceEvents": []}', "holds no operators"),
        (b'[1, 2]', "not a trace"),
        (b'{"traceEvents": [{"ph": "M", "name": "process_name", "args": {"name": "Ascend Hardware"}}]}', "torch_npu"),
    ],
)  # fmt: skip
def test_broken_files_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        profile.read(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        profile.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    "arguments",
    [None, [], {"Input Dims": 3}, {"Input Dims": [[[2, 2], [2]]], "Input type": ["TensorList"]},
     {"Input Dims": [["x"]], "Input type": ["float"]}, {"Input Dims": [[4]], "Input type": [], "External id": None}],
)  # fmt: skip
def test_odd_arguments_are_passed_over(arguments: object, tmp_path: Path) -> None:
    entry = {"ph": "X", "cat": "cpu_op", "name": "aten::bmm", "ts": 1, "dur": 1, "pid": 1, "tid": 1, "args": arguments}
    odd = [entry, {**entry, "ts": "soon"}, {**entry, "dur": None}]
    path = tmp_path / "a.json"
    odd += [kernel("x", 0, 1), {**kernel("x", 0, 1), "ts": "soon"}, {**kernel("x", 0, 1), "args": arguments}]
    path.write_text(json.dumps(odd))  # without a document around it
    assert profile.analyse(profile.read(path)).verdict == "no attention"
