"""flash_attn.layers.rotary: rotation by position, in place where its name says so, its gradients, and the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from faops.adapters.flash_attn.layers import rotary
from faops.adapters.flash_attn.ops.triton.rotary import apply_rotary
from tests.adapters.flash_attn.common import close, offsets, randn

OFFSETS = [0, 5, torch.tensor([3, 0, 7], dtype=torch.int32), torch.tensor([1, 9, 4])]


def tables(positions: int, half: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(positions, half, dtype=torch.float64) * 6
    return angles.cos(), angles.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, start: Any = 0) -> Tensor:
    """x (B, S, H, D) as complex numbers times unit ones: the definition."""
    half = cos.shape[1]
    starts = torch.as_tensor(start).expand(x.shape[0])
    places = starts[:, None] + torch.arange(x.shape[1])
    angle = torch.complex(cos, sin)[places][:, :, None]
    first, second = (x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else (
        x[..., :half], x[..., half : 2 * half])  # fmt: skip
    product = torch.complex(first, second) * angle
    parts = [product.real, product.imag]
    joined = torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)
    return torch.cat([joined, x[..., 2 * half :]], -1)


@pytest.mark.parametrize("start", OFFSETS, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_apply_rotary_emb(inplace: bool, interleaved: bool, start: Any) -> None:
    x, (cos, sin) = randn(3, 6, 2, 16, grad=True), tables(20, 5)
    before = x.detach().clone().requires_grad_()
    wanted = turned(before, cos, sin, interleaved, start)
    out = rotary.apply_rotary_emb(x, cos, sin, interleaved, inplace, start)
    close(out, wanted)
    assert torch.equal(x, out) if inplace else torch.equal(x, before)
    dout = torch.randn_like(out)
    kept = dout.clone()
    (gradient,) = torch.autograd.grad(out, x, dout)
    close(gradient, torch.autograd.grad(wanted, before, kept)[0])
    assert torch.equal(dout, kept)


@pytest.mark.parametrize("interleaved", [False, True])
def test_packed_sequences_turn_by_their_own_positions(interleaved: bool) -> None:
    lengths, (cos, sin) = [4, 0, 3], tables(12, 8)
    x = randn(9, 2, 16, grad=True)
    start = torch.tensor([2, 0, 6])
    out = rotary.apply_rotary_emb(x, cos, sin, interleaved, False, start, offsets(lengths), 4)
    parts = zip(x[:7].split(lengths), start.tolist())
    wanted = torch.cat([*(turned(part[None], cos, sin, interleaved, at)[0] for part, at in parts), x[7:]])
    close(out, wanted)
    dout = torch.randn_like(out)
    close(torch.autograd.grad(out, x, dout)[0], torch.autograd.grad(wanted, x, dout)[0])
    with torch.no_grad():
        same = rotary.apply_rotary_emb(x, cos, sin, interleaved, True, start, offsets(lengths), 4)
    assert same is x or same.data_ptr() == x.data_ptr()
    close(x, wanted)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("own_k_tables", [False, True])
@pytest.mark.parametrize("form", ["packed", "grouped", "strided"])
def test_qkv_in_place(form: str, own_k_tables: bool, interleaved: bool) -> None:
    cos, sin = tables(12, 4)
    cos_k, sin_k = tables(12, 4) if own_k_tables else (None, None)
    start = torch.tensor([1, 4])
    if form == "grouped":
        qkv, heads = randn(2, 5, 4 + 2 * 2, 16, grad=True), 4
        q, k, v = qkv.detach().clone().split([4, 2, 2], dim=2)
    elif form == "packed":
        qkv, heads = randn(2, 5, 3, 2, 16, grad=True), None
        q, k, v = qkv.detach().clone().unbind(2)
    else:
        qkv, heads = randn(2, 3, 5, 2, 16).transpose(1, 2).requires_grad_(), None
        q, k, v = qkv.detach().clone().unbind(2)
    original = [x.requires_grad_() for x in (q, k, v)]
    wanted_q = turned(q, cos, sin, interleaved, start)
    wanted_k = turned(k, *((cos, sin) if cos_k is None or sin_k is None else (cos_k, sin_k)), interleaved, start)
    out = rotary.apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, interleaved, start, heads)
    assert torch.equal(out, qkv)
    join = (lambda *parts: torch.cat(parts, 2)) if form == "grouped" else (lambda *parts: torch.stack(parts, 2))
    wanted = join(wanted_q, wanted_k, v)
    close(out, wanted)
    dout = torch.randn_like(out)
    kept = dout.clone()
    (gradient,) = torch.autograd.grad(out, qkv, dout)
    close(gradient, join(*torch.autograd.grad(wanted, original, kept)))
    assert torch.equal(dout, kept)


def test_kv_in_place() -> None:
    kv, (cos, sin) = randn(2, 5, 2, 3, 16, grad=True), tables(9, 8)
    k, v = (x.clone().requires_grad_() for x in kv.detach().unbind(2))
    wanted = torch.stack([turned(k, cos, sin, True, 4), v], 2)
    out = rotary.apply_rotary_emb_kv_(kv, cos, sin, True, 4)
    close(out, wanted)
    assert torch.equal(kv, out)
    dout = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, kv, dout)
    close(gradient, torch.stack(torch.autograd.grad(wanted, [k, v], dout), 2))


def test_the_reference_and_its_half_turn() -> None:
    x, (cos, sin) = randn(2, 6, 2, 16), tables(6, 5)
    for interleaved in (False, True):
        close(rotary.apply_rotary_emb_torch(x, cos, sin, interleaved), turned(x, cos, sin, interleaved))
        by_batch = rotary.apply_rotary_emb_torch(x, cos.expand(2, -1, -1), sin.expand(2, -1, -1), interleaved)
        close(by_batch, turned(x, cos, sin, interleaved))
    assert rotary.apply_rotary_emb_func is rotary.apply_rotary_emb


def test_half_precision_is_rounded_once() -> None:
    x, (cos, sin) = randn(2, 6, 2, 16, dtype=torch.bfloat16), tables(6, 8)
    cos, sin = cos.bfloat16(), sin.bfloat16()
    out = rotary.apply_rotary_emb(x, cos, sin)
    assert out.dtype == torch.bfloat16
    exact = turned(x.double(), cos.double(), sin.double(), False)
    assert (out.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_conjugate_turns_back() -> None:
    x, (cos, sin) = randn(2, 6, 2, 16), tables(9, 8)
    close(apply_rotary(apply_rotary(x, cos, sin, 3), cos, sin, 3, conjugate=True), x)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"x": torch.rand(2, 6, 16)}, "x"),
        ({"sin": torch.rand(6, 4)}, "sin"),
        ({"cos": torch.rand(6, 9), "sin": torch.rand(6, 9)}, "cos"),
        ({"cos": torch.rand(5, 8), "sin": torch.rand(5, 8)}, "cos"),
        ({"seqlen_offsets": 3}, "cos"),
        ({"seqlen_offsets": torch.tensor([0, 3])}, "cos"),
        ({"seqlen_offsets": torch.tensor([0, 1, 2])}, "seqlen_offsets"),
        ({"seqlen_offsets": torch.tensor([0.0, 1.0])}, "seqlen_offsets"),
        ({"x": torch.rand(12, 2, 16), "cu_seqlens": offsets([6, 6])}, "max_seqlen"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], named: str) -> None:
    arguments = {"x": torch.rand(2, 6, 2, 16), "cos": torch.rand(8, 8), "sin": torch.rand(8, 8)} | changes
    before = arguments["x"].clone()
    with pytest.raises(RuntimeError, match=f"^{named}: got"):
        rotary.apply_rotary_emb(**arguments, inplace=True)
    assert torch.equal(arguments["x"], before)


def test_wrong_tables_of_k_leave_q_alone() -> None:
    qkv, (cos, sin) = randn(2, 5, 3, 2, 16), tables(5, 8)
    before = qkv.clone()
    with pytest.raises(RuntimeError, match=r"^cos: got"):
        rotary.apply_rotary_emb_qkv_(qkv, cos, sin, *tables(4, 8))
    with pytest.raises(RuntimeError, match=r"^num_heads_q: got"):
        rotary.apply_rotary_emb_qkv_(qkv[:, :, 0], cos, sin)
    with pytest.raises(RuntimeError, match=r"^qkv: got"):
        rotary.apply_rotary_emb_qkv_(qkv[:, :, :2], cos, sin)
    with pytest.raises(RuntimeError, match=r"^kv: got"):
        rotary.apply_rotary_emb_kv_(qkv, cos, sin)
    assert torch.equal(qkv, before)


# --- the module -------------------------------------------------------------------------------------------------------


def angles_of(dim: int, positions: int, base: float = 10000.0) -> Tensor:
    return torch.outer(torch.arange(positions).double(), base ** (-torch.arange(0, dim, 2).double() / dim))


@pytest.mark.parametrize("interleaved", [False, True])
def test_module_turns_qkv_and_grows_its_tables(interleaved: bool) -> None:
    module = rotary.RotaryEmbedding(8, base=1000.0, interleaved=interleaved)
    assert dict(module.named_buffers()).keys() == {"inv_freq"} and not module.state_dict()
    for seqlen, start in ((5, 0), (3, 9), (4, 2)):
        qkv = randn(2, seqlen, 3, 2, 16, dtype=torch.float32)
        q, k, v = qkv.clone().double().unbind(2)
        angles = angles_of(8, seqlen + start, 1000.0)
        wanted = [turned(x, angles.cos(), angles.sin(), interleaved, start) for x in (q, k)]
        out = module(qkv, seqlen_offset=start)
        assert torch.equal(out, qkv)
        close(out, torch.stack([*wanted, v], 2))
    assert module._cos_cached is not None and module._cos_cached.shape == (12, 4)


def test_module_takes_q_beside_kv_and_tensor_offsets() -> None:
    module = rotary.RotaryEmbedding(16)
    q, kv = randn(2, 3, 4, 16, dtype=torch.float32), randn(2, 3, 2, 2, 16, dtype=torch.float32)
    before_q, before_k, v = q.double(), kv[:, :, 0].double(), kv[:, :, 1].double()
    start, angles = torch.tensor([4, 1]), angles_of(16, 7)
    with pytest.raises(RuntimeError, match="max_seqlen"):
        module(q, kv, seqlen_offset=start)
    out_q, out_kv = module(q, kv, seqlen_offset=start, max_seqlen=7)
    close(out_q, turned(before_q, angles.cos(), angles.sin(), False, start))
    close(out_kv, torch.stack([turned(before_k, angles.cos(), angles.sin(), False, start), v], 2))


def test_xpos_scales_q_and_divides_k() -> None:
    """Products of q and k depend on distance alone, with the decay of the distance in them."""
    module = rotary.RotaryEmbedding(8, scale_base=16.0)
    assert dict(module.named_buffers()).keys() == {"inv_freq", "scale"} and not module.state_dict()
    q, kv = torch.ones(1, 6, 1, 8), torch.ones(1, 6, 2, 1, 8)
    q, kv = module(q, kv)
    products = torch.einsum("bihd,bjhd->ij", q, kv[:, :, 0])
    for distance in range(6):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    scale = (torch.arange(0, 8, 2) + 0.4 * 8) / (1.4 * 8)
    close(module.scale, scale)
    angles = angles_of(8, 6)
    factors = scale.double() ** ((torch.arange(6) - 3)[:, None] / 16.0)
    wanted = turned(torch.ones(1, 6, 1, 8).double(), angles.cos() * factors, angles.sin() * factors, False)
    close(q, wanted)


def test_tables_follow_dtype_and_leave_inference_mode() -> None:
    module = rotary.RotaryEmbedding(16)
    with torch.inference_mode():
        module(randn(1, 4, 3, 1, 16, dtype=torch.bfloat16))
    assert module._cos_cached is not None and module._cos_cached.dtype == torch.bfloat16
    qkv = randn(1, 4, 3, 1, 16, dtype=torch.bfloat16, grad=True)
    module(qkv * 1).sum().backward()
    assert not module._cos_cached.is_inference()
    module(randn(1, 4, 3, 1, 16, dtype=torch.float32))
    assert module._cos_cached.dtype == torch.float32
    module.bfloat16()  # 16-bit frequencies are not what the angles are made of
    module(randn(1, 900, 3, 1, 16, dtype=torch.float32))
    torch.testing.assert_close(module._cos_cached.double(), angles_of(16, 900).cos(), rtol=0, atol=1e-4)
