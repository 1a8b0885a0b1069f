"""Real programs on the CPU: each is recorded, and the recording shows what the program does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import faops
from faops import ops
from tests.profile.support import eager, heads_first, shown

sdpa = F.scaled_dot_product_attention
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


# --- fused ------------------------------------------------------------------------------------------------------------


def test_sdpa_is_fused(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 32)
    report = shown(lambda: sdpa(q, k, v, is_causal=True), tmp_path, steps=3)
    assert report.verdict == "fused" and report.passed(strict=True)
    (row,) = report.rows
    assert (row.name, row.kind, row.calls) == (FLASH, "fused", 3)
    assert "flash" in row.label and row.seconds > 0
    assert report.traffic.counted == report.traffic.least == 3 * 4 * q.numel() * 4  # q, k, v and out in float32
    assert not report.traffic.modelled


def test_sdpa_is_fused_backward_too(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 63, 16, grad=True)
    report = shown(lambda: sdpa(q, k, v).sum().backward(), tmp_path)
    assert report.verdict == "fused"
    assert {row.name: row.calls for row in report.rows} == {FLASH: 2, f"{FLASH}_backward": 2}
    assert any("backward" in row.label for row in report.rows)


def test_faops_by_sdpa_is_fused_and_named(tmp_path: Path) -> None:
    q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in heads_first(1, 2, 129, 32))
    report = shown(lambda: faops.attention(q, k, v, causal=True, backend="torch.sdpa"), tmp_path)
    assert report.verdict == "fused" and report.passed(strict=True)
    assert [(row.name, row.calls) for row in report.rows] == [(FLASH, 2)]
    assert "torch.sdpa_forward" in report.rows[0].label


# --- tiled ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tiles")
def test_blockwise_is_tiled_and_its_bytes_are_modelled(tmp_path: Path) -> None:
    q, k, v = (torch.randn(1, 127, 2, 16) for _ in range(3))
    report = shown(lambda: faops.attention(q, k, v, causal=True, backend="torch.blockwise"), tmp_path)
    assert report.verdict == "tiled"
    assert report.passed() and not report.passed(strict=True)
    assert [(row.name, row.kind, row.calls) for row in report.rows] == [("torch.blockwise_forward", "tiled", 2)]
    assert not report.patterns
    assert report.traffic.modelled == report.traffic.least == 2 * 4 * 4 * q.numel() and not report.traffic.counted


def test_blockwise_trains_tiled(tmp_path: Path) -> None:
    q, k, v = (torch.randn(1, 33, 2, 16, requires_grad=True) for _ in range(3))
    report = shown(lambda: faops.attention(q, k, v, backend="torch.blockwise").sum().backward(), tmp_path)
    assert report.verdict == "tiled"
    assert {row.name for row in report.rows} == {"torch.blockwise_forward", "torch.blockwise_backward"}


def test_the_operator_is_marked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "is_plain", lambda *tensors: False)  # as in compiled code
    q, k, v = (torch.randn(1, 33, 2, 16) for _ in range(3))
    report = shown(lambda: faops.attention(q, k, v, backend="torch.blockwise"), tmp_path)
    assert report.verdict == "tiled" and report.rows[0].calls == 2


# --- not fused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(lambda q, k, v: eager(q, k, v), id="plain"),
        pytest.param(lambda q, k, v: eager(q, k, v, torch.ones(65, 65).triu(1).bool()), id="mask"),
        pytest.param(lambda q, k, v: eager(q, k, v, dropout=0.1), id="dropout"),
        pytest.param(lambda q, k, v: eager(q.bfloat16(), k.bfloat16(), v.bfloat16()), id="bfloat16"),
        pytest.param(
            lambda q, k, v: torch.softmax((q @ k.mT).double() + 1, -1).to(v.dtype) @ v, id="softmax in a wider dtype"
        ),
        pytest.param(
            lambda q, k, v: torch.einsum(
                "bhmn,bhnd->bhmd", torch.einsum("bhmd,bhnd->bhmn", q, k).softmax(-1), v
            ),
            id="einsum",
        ),
        pytest.param(lambda q, k, v: eager(q[:, :, :1], k, v), id="decode"),
        pytest.param(lambda q, k, v: (v.mT @ torch.softmax(q @ k.mT, -1).mT).mT, id="transposed product"),
        pytest.param(lambda q, k, v: torch.softmax(q[0, 0] @ k[0, 0].T, -1) @ v[0, 0], id="one head"),
        pytest.param(lambda q, k, v: by_hand(q, k, v), id="by hand"),
    ],
)  # fmt: skip
def test_eager_attention_is_not_fused(program: Callable[[Tensor, Tensor, Tensor], Tensor], tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 32)
    report = shown(lambda: program(q, k, v), tmp_path)
    assert report.verdict == "not fused" and not report.passed()
    assert [(row.kind, row.calls) for row in report.rows] == [("not fused", 2)]
    assert len(report.patterns) == 2 and all(pattern.certain for pattern in report.patterns)
    assert report.traffic.counted > report.traffic.least > 0


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def test_exponentials_may_be_summed_up_afterwards(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 32)

    def program() -> Tensor:
        weights = torch.exp2(q @ k.mT)
        return weights @ v / weights.sum(-1, keepdim=True)

    assert shown(program, tmp_path).verdict == "not fused"


@pytest.mark.parametrize("experts", [(), (5,)])
def test_an_activation_is_no_softmax(experts: tuple[int, ...], tmp_path: Path) -> None:
    """A gated layer with its SiLU in parts, as torch.compile may leave it."""
    x, up, down = torch.randn(*experts, 65, 32), torch.randn(*experts, 32, 48), torch.randn(*experts, 48, 32)

    def program() -> Tensor:
        hidden = x @ up
        return (hidden / (1 + (-hidden).exp())) @ down

    assert shown(program, tmp_path).verdict == "no attention"


def test_scores_and_bytes_of_eager_attention(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 32)
    report = shown(lambda: torch.softmax(q @ k.mT, -1) @ v, tmp_path, steps=1)
    (pattern,) = report.patterns
    assert pattern.scores is not None and pattern.scores.shape == (2, 3, 65, 65)
    assert not pattern.backward and "2x3x65x65" in str(pattern)
    scores, tensor = 4 * 2 * 3 * 65 * 65, 4 * q.numel()
    assert report.traffic.least == 4 * tensor
    assert report.traffic.counted == 4 * tensor + 4 * scores  # written, read, written and read


def test_training_is_not_fused_forward_and_backward(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 33, 16, grad=True)
    report = shown(lambda: eager(q, k, v).sum().backward(), tmp_path)
    assert sorted(pattern.backward for pattern in report.patterns) == [False, False, True, True]


def test_sdpa_by_its_math_backend_is_not_fused(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 65, 16)
    with sdpa_kernel(SDPBackend.MATH):
        report = shown(lambda: sdpa(q, k, v, is_causal=True), tmp_path)
    assert report.verdict == "not fused" and len(report.patterns) == 2


def test_the_fast_path_of_multihead_attention_is_not_fused(tmp_path: Path) -> None:
    layer = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(2, 33, 32)
    assert shown(lambda: layer(x, x, x), tmp_path).verdict == "not fused"


def test_one_unfused_layer_among_fused_ones_shows(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 65, 16)
    report = shown(lambda: (sdpa(q, k, v), eager(q, k, v), sdpa(q, k, v)), tmp_path, steps=1)
    assert report.verdict == "not fused"
    assert sorted((row.kind, row.calls) for row in report.rows) == [("fused", 2), ("not fused", 1)]


# --- no attention -----------------------------------------------------------------------------------------------------


def test_a_classifier_is_no_attention(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10), torch.nn.Softmax(-1))
    x = torch.randn(65, 16)
    report = shown(lambda: model(x), tmp_path)
    assert report.verdict == "no attention" and not report.passed()
    assert report.rows == [] and report.patterns == []


@pytest.mark.parametrize("shape", [(65, 32), (2, 65, 32)])
def test_a_router_is_no_attention(shape: tuple[int, ...], tmp_path: Path) -> None:
    """All experts, weighted: a product with weights, a softmax, and a product with the experts' results."""
    x, weights = torch.randn(shape), torch.randn(32, 5)
    experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(5))

    def moe() -> Tensor:
        share = torch.softmax(x @ weights, -1)
        return torch.einsum("...e,...ed->...d", share, torch.stack([expert(x) for expert in experts], -2))

    assert shown(moe, tmp_path).verdict == "no attention"


def test_a_router_of_linear_layers_is_no_attention(tmp_path: Path) -> None:
    gate, table = torch.nn.Linear(32, 32), torch.randn(32, 32)
    x = torch.randn(32, 32)
    assert shown(lambda: torch.softmax(gate(x), -1) @ table, tmp_path).verdict == "no attention"


# --- what it costs besides --------------------------------------------------------------------------------------------


def test_transposed_views_are_free(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 65, 3, 32)
    report = shown(lambda: sdpa(*(tensor.transpose(1, 2) for tensor in (q, k, v))), tmp_path)
    assert report.transposes.count == 0 and report.passed(strict=True)


def test_transposed_copies_of_inputs_are_counted(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 65, 3, 32)
    report = shown(lambda: sdpa(*(tensor.transpose(1, 2).contiguous() for tensor in (q, k, v))), tmp_path)
    assert report.verdict == "fused"
    assert report.transposes.count == 6 and report.transposes.seconds > 0
    assert report.transposes.bytes == 6 * 2 * 4 * q.numel()
    assert report.passed() and not report.passed(strict=True)


def test_other_copies_are_not_counted(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 32)
    weights = torch.randn(48, 64)

    def program() -> None:
        weights.T.contiguous()  # of another shape
        sdpa(q.clone(), k.to(torch.float64).float(), v)  # of the same layout

    assert shown(program, tmp_path).transposes.count == 0


def test_repeated_heads_are_counted(tmp_path: Path) -> None:
    (q,) = heads_first(2, 4, 65, 32, count=1)
    k, v = heads_first(2, 2, 65, 32, count=2)

    def repeated(tensor: Tensor) -> Tensor:
        return tensor[:, :, None].expand(2, 2, 2, 65, 32).reshape(2, 4, 65, 32)

    report = shown(lambda: sdpa(q, repeated(k), repeated(v)), tmp_path)
    assert report.repeats.count == 4 and report.transposes.count == 0
    assert not report.passed(strict=True)


def test_the_gradient_of_a_sum_is_no_repeated_head(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 33, 16)

    def program() -> None:
        torch.ones(()).expand(q.shape).contiguous()
        torch.ones(1, 2, 1, 1).expand(q.shape).contiguous()
        sdpa(q, k, v)

    assert shown(program, tmp_path).passed(strict=True)


def test_a_mask_made_for_every_call_is_reported(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 65, 16)
    report = shown(lambda: sdpa(q, k, v, attn_mask=torch.full((65, 65), -1e9).triu(1)), tmp_path, steps=3)
    (mask,) = report.masks
    assert (mask.shape, mask.made, mask.calls, mask.every_call) == ((65, 65), 3, 3, True)
    assert mask.operators == ["aten::full", "aten::triu"]
    assert report.passed() and not report.passed(strict=True)


def test_a_mask_made_once_is_not_made_for_every_call(tmp_path: Path) -> None:
    q, k, v = heads_first(1, 2, 65, 16)

    def model() -> None:
        mask = torch.full((65, 65), -1e9).triu(1)
        for _ in range(3):
            sdpa(q, k, v, attn_mask=mask)

    (mask,) = shown(model, tmp_path).masks
    assert (mask.made, mask.calls, mask.every_call) == (2, 6, False)


def test_masking_the_scores_is_not_making_a_mask(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 16)
    mask = torch.ones(65, 65, dtype=torch.bool).triu(1)
    assert shown(lambda: eager(q, k, v, mask), tmp_path).masks == []


def test_a_mask_of_eager_attention_is_reported(tmp_path: Path) -> None:
    q, k, v = heads_first(2, 3, 65, 16, grad=True)
    program: Callable[[], None] = lambda: eager(q, k, v, torch.ones(65, 65).triu(1) > 0).sum().backward()  # noqa: E731
    (mask,) = shown(program, tmp_path).masks
    assert (mask.made, mask.calls) == (2, 2)  # backward needs none
    assert "aten::triu" in mask.operators and "aten::masked_fill" not in mask.operators
