"""`faops kernels`."""

from __future__ import annotations

import pytest

from faops import registry
from tests.cli.conftest import Faops
from tests.cli.support import document, refused


def test_lists_every_registered_kernel(faops: Faops) -> None:
    found = document(faops("kernels", "--json"))["kernels"]
    assert [row["kernel"] for row in found] == [kernel.id for kernel in registry.kernels()]
    assert all(row["configs"] >= 1 for row in found if row["backend"] == "torch")
    assert all("NVIDIA" in row["reasons"][0] for row in found if row["backend"] == "cuda_raw")
    text = faops("kernels").stdout
    for kernel in registry.kernels():
        assert f"\n{kernel.id} " in text


def test_says_what_a_device_refuses(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = registry.kernels("forward")[0]
    rejected = registry.Rejected(("needs wings", "needs wheels"))
    monkeypatch.setattr(type(kernel), "check", lambda self, problem, device: rejected)
    row = next(r for r in document(faops("kernels", "--json"))["kernels"] if r["kernel"] == kernel.id)
    assert row["reasons"] == ["needs wings", "needs wheels"]
    assert row["configs"] == 0
    assert "needs wings" in faops("kernels", "--device", "t4").stdout


def test_a_card_that_is_not_here_has_its_configs(faops: Faops) -> None:
    rows = {row["kernel"]: row for row in document(faops("kernels", "--device", "a100", "--json"))["kernels"]}
    assert rows["cuda_raw.sm80_forward"]["configs"] > 10
    assert rows["cuda_raw.sm80_forward"]["reasons"] == []
    assert "Turing" in rows["cuda_raw.sm75_forward"]["reasons"][0]


def test_shows_backends_that_failed(faops: Faops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._failures, "acme", "ImportError: no acme")
    assert document(faops("kernels", "--json"))["failures"] == {"acme": "ImportError: no acme"}
    assert "backend acme could not be loaded: ImportError: no acme" in faops("kernels").stdout


def test_unknown_device(faops: Faops) -> None:
    refused(faops("kernels", "--device", "z80"), "'z80'", "a100")


def test_shipped_defaults(faops: Faops) -> None:
    large, small = (
        document(faops("kernels", "--defaults", "--device", name, "--json"))["defaults"] for name in ("h200", "4090")
    )
    assert {row["origin"] for row in large} == {"shipped default for hopper (compiled, not measured)"}
    assert {row["kernel"] for row in large} >= {"triton.forward", "cuda_raw.sm80_forward"}
    assert "cuda_raw.sm75_forward" not in {row["kernel"] for row in large}
    configs = [[(row["scope"], row["config"]) for row in rows] for rows in (large, small)]
    assert any(row in configs[1] for row in configs[0]) and any(row not in configs[1] for row in configs[0])

    text = " ".join(faops("kernels", "--defaults", "--device", "h200").stdout.split())
    assert "dtype bfloat16 or float16, case plain or scored, head_dim 1 to 64" in text
    assert "query_rows 65 and more" in text
    assert "triton.forward: shipped default for hopper (compiled, not measured)" in text
    here = faops("kernels", "--defaults", "--device", "cpu").stdout
    assert here.endswith("every kernel that runs on this device chooses its default by rule\n")
