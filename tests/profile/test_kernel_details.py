"""kernel_details.csv of torch_npu's profiler: samples written by hand, in the columns of its user guide."""

from __future__ import annotations

from pathlib import Path

import pytest

from faops import profile
from faops.profile import Report, TraceError, kernel_details
from tests.profile.support import SAMPLES


def shown(name: str) -> Report:
    return profile.analyse(profile.read(SAMPLES / name))


def calls(report: Report) -> dict[str, int]:
    return {row.name: row.calls for row in report.rows}


def test_a_fused_training_step() -> None:
    report = shown("fused_training.csv")
    assert report.verdict == "fused" and report.passed(strict=True)
    assert report.device == "npu" and report.source == "kernel_details"
    assert calls(report) == {"FlashAttentionScore": 2, "FlashAttentionScoreGrad": 2}
    times = {row.name: row.seconds for row in report.rows}
    assert times["FlashAttentionScore"] == pytest.approx(2 * 210.4e-6)
    tensor, statistics, mask = 8 * 4096 * 128 * 2, 8 * 4096 * 8 * 4, 2048 * 2048
    forward = 4 * tensor + 2 * statistics + mask
    backward = 8 * tensor + 2 * statistics + mask
    assert report.traffic.counted == 2 * (forward + backward)


def test_attention_that_is_not_fused() -> None:
    report = shown("unfused.csv")
    assert report.verdict == "not fused" and not report.passed()
    assert len(report.patterns) == 2 and all(pattern.certain for pattern in report.patterns)
    assert str(report.patterns[0]) == "BatchMatMulV2 – SoftmaxV2 – BatchMatMulV2, scores 1x8x512x512"
    assert report.rows[0].seconds == pytest.approx(2 * (30 + 12 + 14 + 22 + 29) * 1e-6)
    assert report.traffic.least == 2 * 4 * 8 * 512 * 64 * 2 < report.traffic.counted
    assert not report.masks  # MaskedFill of the scores makes no mask


def test_transposes_of_the_inputs() -> None:
    report = shown("fused_transposes.csv")
    assert report.verdict == "fused" and not report.passed(strict=True)
    assert report.transposes.count == 2 * 4  # of q, k, v and out, not of the weights
    assert report.transposes.seconds == pytest.approx(2 * (3 * 48.1 + 15.3) * 1e-6)


def test_a_compressed_mask_made_for_every_call() -> None:
    report = shown("mask_every_call.csv")
    (mask,) = report.masks
    assert (mask.shape, mask.made, mask.calls, mask.every_call) == ((2048, 2048), 4, 4, True)
    assert mask.operators == ["Fill", "Triu"] and mask.seconds == pytest.approx(4 * 15e-6)
    assert report.verdict == "fused" and report.passed() and not report.passed(strict=True)


def test_a_prompt_and_its_answer() -> None:
    report = shown("prompt_and_incre.csv")
    assert report.verdict == "fused" and report.passed(strict=True)
    assert calls(report) == {"PromptFlashAttention": 1, "IncreFlashAttention": 3}  # sampling's softmax is none


def test_a_router_is_no_attention() -> None:
    assert shown("router.csv").verdict == "no attention"


def test_columns_of_older_versions() -> None:
    (newer, older) = (kernel_details.rows(SAMPLES / name) for name in ("fused_training.csv", "older_columns.csv"))
    assert "Block Num" in older[0] and "Block Dim" not in older[0] and "Step Id" not in older[0]
    assert {name: newer[0][name] for name in older[0]} == older[0]
    assert newer[0]["Start Time(us)"] == "1764000000000.000"  # the profiler writes a tab after it
    assert calls(shown("older_columns.csv")) == {"FlashAttentionScore": 1, "FlashAttentionScoreGrad": 1}


def test_level_0_has_neither_types_nor_shapes() -> None:
    report = shown("level0_fused.csv")
    assert report.verdict == "fused" and not report.shapes_known
    assert calls(report) == {"FlashAttentionScore": 1, "FlashAttentionScoreGrad": 1}
    assert report.traffic.unknown == 2
    unfused = shown("level0_unfused.csv")
    assert unfused.verdict == "not fused" and [pattern.certain for pattern in unfused.patterns] == [False]


def test_transposes_of_an_operator_of_attention_need_no_shapes(tmp_path: Path) -> None:
    line = "0,{},N/A,N/A,10.000\t,48.1,1.2,24\n"
    names = ("FlashAttentionScore_TransposeAiCore_Transpose", "FlashAttentionScore_FlashAttentionScore",
             "InplaceCopy_TransposeAiCore_Transpose")  # fmt: skip
    header = (SAMPLES / "level0_fused.csv").read_text().splitlines()[0]
    (tmp_path / "a.csv").write_text(f"{header}\n" + "".join(line.format(f"aclnn{name}") for name in names))
    report = profile.analyse(profile.read(tmp_path / "a.csv"))
    assert report.verdict == "fused" and report.transposes.count == 1


def test_without_shapes_plain_products_prove_nothing(tmp_path: Path) -> None:
    text = (SAMPLES / "level0_unfused.csv").read_text().replace("BatchMatMul", "MatMul")
    (tmp_path / "kernel_details.csv").write_text(text)
    assert profile.analyse(profile.read(tmp_path)).verdict == "no attention"


def test_without_shapes_a_fused_kernel_wins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text((SAMPLES / "level0_unfused.csv").read_text())
    fused = (SAMPLES / "level0_fused.csv").read_text().splitlines()
    with (tmp_path / "a.csv").open("a") as file:
        file.write(next(line for line in fused if "FlashAttentionScore_" in line) + "\n")
    report = profile.analyse(profile.read(tmp_path / "a.csv"))
    assert report.verdict == "fused" and report.patterns == []


def test_streams_are_told_apart(tmp_path: Path) -> None:
    """The parts of attention on three streams are no attention."""
    lines = (SAMPLES / "unfused.csv").read_text().splitlines()[:7]
    spread = [lines[0], *(line.replace(",2,aclnn", f",{stream},aclnn") for stream, line in enumerate(lines[1:]))]
    assert spread[1:] != lines[1:]
    (tmp_path / "a.csv").write_text("\n".join(spread))
    assert profile.analyse(profile.read(tmp_path / "a.csv")).verdict == "no attention"


def test_shapes_of_tiles_are_left_out(tmp_path: Path) -> None:
    text = (SAMPLES / "unfused.csv").read_text().replace("ND;ND", "ND;FRACTAL_NZ")
    (tmp_path / "a.csv").write_text(text)
    rows = profile.read(tmp_path / "a.csv").events
    assert [operand.shape for operand in rows[1].inputs] == [(8, 512, 64)]
    assert profile.analyse(profile.read(tmp_path / "a.csv")).verdict == "not fused"  # the results say enough


def test_a_folder_holds_one_file_a_process(tmp_path: Path) -> None:
    for rank in range(2):
        folder = tmp_path / f"host_{rank}_ascend_pt" / "ASCEND_PROFILER_OUTPUT"
        folder.mkdir(parents=True)
        (folder / "kernel_details.csv").write_text((SAMPLES / "fused_training.csv").read_text())
    assert calls(profile.analyse(profile.read(tmp_path)))["FlashAttentionScore"] == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.csv", ("is empty",)),
        ("cut_off.csv", ("line 10", "18 of 21", "cut off")),
        ("other_file.csv", ("no column Name",)),
        ("missing.csv", ("missing.csv", "No such file")),
    ],
)
def test_broken_files_are_named(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(TraceError) as caught:
        kernel_details.rows(SAMPLES / name)
    assert all(word in str(caught.value) for word in (name, *words)), caught.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00a", "no text"),
        (b'Name,Start Time(us),Duration(us)\nx,soon,1\n', "line 2: Start Time(us) is 'soon'"),
        (b'Name,Start Time(us),Duration(us)\nx,1,\n', "line 2: Duration(us) is ''"),
    ],
)  # fmt: skip
def test_broken_contents_are_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(TraceError) as caught:
        profile.read(tmp_path / "a.csv")
    assert words in str(caught.value)


def test_a_file_without_rows_shows_no_attention() -> None:
    report = shown("header_only.csv")
    assert report.verdict == "no attention" and not report.passed()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no kernel_details\.csv"):
        profile.read(tmp_path)
