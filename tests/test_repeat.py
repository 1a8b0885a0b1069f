"""The short path of a repeated call gives what the long one gives, and only where it may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import faops
from faops import api, dispatch, registry, repeat

OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "window": (3, 0)},
    {"softcap": 5.0, "scale": 0.3},
    {"return_lse": True},
    {"layout": "bhsd"},
    {"layout": "bhsd", "return_lse": True},
    {"backend": "torch.blockwise"},
]


@pytest.fixture(autouse=True)
def _fresh_memo() -> Iterator[None]:
    dispatch.forget()
    yield
    dispatch.forget()


def make(batch: int = 2, rows: int = 9, heads: int = 4, dim: int = 8) -> list[Tensor]:
    return [torch.randn(batch, rows, heads, dim) for _ in range(3)]


def as_tuple(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def count_long_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every call that takes the long path."""
    calls: list[int] = []
    original = api._dense_arguments

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "_dense_arguments", counted)
    return calls


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_call_is_short_and_gives_the_same(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    calls = count_long_calls(monkeypatch)
    q, k, v = make()
    first = as_tuple(faops.attention(q, k, v, **options))
    second = as_tuple(faops.attention(q, k, v, **options))
    assert len(calls) == 1
    assert len(first) == len(second)
    for one, two in zip(first, second):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()


def test_fresh_data_gives_fresh_results() -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    other = torch.randn_like(q)
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (other, k, v)))
    torch.testing.assert_close(faops.attention(other, k, v), expected.transpose(1, 2))


def test_another_shape_stride_dtype_or_option_takes_the_long_path(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    calls = count_long_calls(monkeypatch)
    faops.attention(q[:, :5], k, v)
    faops.attention(q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
    faops.attention(q.double(), k.double(), v.double())
    faops.attention(q, k, v, causal=True)
    faops.attention(q, k, v, scale=0.5)
    assert len(calls) == 5


def test_wrong_input_is_named_after_a_right_call() -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    with pytest.raises(faops.ArgumentError, match="k: got dtype"):
        faops.attention(q, k.double(), v)
    with pytest.raises(faops.ArgumentError, match="window"):
        faops.attention(q, k, v, window=[-5, 0])  # type: ignore[arg-type]


def test_a_gradient_is_never_lost() -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    q.requires_grad_()
    out = faops.attention(q, k, v)
    assert out.requires_grad
    with torch.no_grad():
        assert not faops.attention(q, k, v).requires_grad
    assert faops.attention(q, k, v).requires_grad
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.abs().sum() > 0


def test_autocast_is_seen_after_a_call_without_it() -> None:
    q, k, v = make()
    assert faops.attention(q, k, v).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert faops.attention(q, k, v).dtype == torch.bfloat16
    assert faops.attention(q, k, v).dtype == torch.float32


def test_torch_func_is_seen_after_a_plain_call() -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    gradient = torch.func.grad(lambda x: faops.attention(x, k, v).sum())(q)
    q.requires_grad_()
    (expected,) = torch.autograd.grad(faops.attention(q, k, v).sum(), q)
    torch.testing.assert_close(gradient, expected)


def test_a_newly_registered_kernel_ends_the_short_path() -> None:
    q, k, v = make()
    faops.attention(q, k, v)
    options = (False, (-1, -1), None, 0.0, False, "bshd", False, None)
    assert repeat.find(q, k, v, options) is not None
    registry.register(registry.kernels()[0])
    assert repeat.find(q, k, v, options) is None
