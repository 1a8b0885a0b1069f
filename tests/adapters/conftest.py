"""Registers the adapter with transformers for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("transformers", reason="transformers is not installed (extra: transformers)")


@pytest.fixture(autouse=True, scope="session")
def registered() -> Iterator[None]:
    from transformers.utils import logging

    from faops.adapters.transformers import register

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    register()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """The calls into faops made by the adapter: the function's name and its keyword arguments."""
    import faops

    made: list[tuple[str, dict[str, object]]] = []

    def spy(name: str) -> None:
        real = getattr(faops, name)

        def wrapper(*tensors: object, **options: object) -> object:
            made.append((name, options))
            return real(*tensors, **options)

        monkeypatch.setattr(faops, name, wrapper)

    spy("attention")
    spy("attention_varlen")
    return made
