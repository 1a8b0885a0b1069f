"""Compiled kernels are kept between tests, and between runs of them: their names are hashes of all they are made of."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from faops.backends.cuda_raw.emulator import compiler


@pytest.fixture(scope="session")
def kernel_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("emulator")) if cache else tmp_path_factory.getbasetemp() / "emulator"


@pytest.fixture(autouse=True)
def kept_kernels(kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := compiler.missing():
        pytest.skip(reason)
    monkeypatch.setattr(
        importlib.import_module("faops.backends.cuda_raw.emulator.build"), "directory", lambda: kernel_folder
    )
