"""The version of CANN, read from the files of made-up installations, and what it does to the cache."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faops import cann
from faops.autotune.cache import TuningCache, environment, lookup
from faops.device import known

from ..support import PROBLEM, FakeKernel, make_entry

NPU = known("910b")
OWN = f"{platform.machine().lower()}-linux"
RECORD = (
    "package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100R001C23SPC001B231\n"
    "compatible_version=[V100R001C15],[V100R001C23]\narch=aarch64\nos=linux\n"
)
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Writes files of a CANN that this process would load."""
    for name in cann.HOMES:
        monkeypatch.delenv(name, raising=False)

    def write(variable: str = "ASCEND_HOME_PATH", **files: str) -> Path:
        home = tmp_path / variable
        for name, text in files.items():
            path = home / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setenv(variable, str(home))
        environment.versions.cache_clear()
        return home

    environment.versions.cache_clear()
    yield write
    environment.versions.cache_clear()


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (f"{OWN}/ascend_toolkit_install.info", RECORD.format(version="8.3.RC1"), "8.3.RC1"),
        ("aarch64-linux/ascend_toolkit_install.info", RECORD.format(version="8.5.0"), "8.5.0"),
        ("ascend_toolkit_install.info", RECORD.format(version="9.2.0-beta.2"), "9.2.0-beta.2"),
        ("share/info/runtime/version.info", "Version=9.0.0\n", "9.0.0"),
        ("compiler/version.info", "# what it is\nVersion=[7.6.0.1.220:8.0.0]\n", "7.6.0.1.220"),
        (f"{OWN}/ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\ninnerversion=V100\n", ""),
        (f"{OWN}/ascend_toolkit_install.info", "", ""),
        ("elsewhere/ascend_toolkit_install.info", RECORD.format(version="8.3.RC1"), ""),
    ],
)
def test_the_version(install: Install, path: str, text: str, expected: str) -> None:
    install(**{path.replace("/", "__"): text})
    assert cann.version() == expected


def test_the_toolkits_own_record_comes_first(install: Install) -> None:
    files = {f"{OWN}__ascend_toolkit_install.info": RECORD.format(version="8.0.0")}
    install(**files, **{"runtime__version.info": "Version=7.6.0.1.220\n"})
    assert cann.version() == "8.0.0"


def test_what_is_sourced_counts(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cann.version() == cann.build() == ""
    assert cann.home() is None
    install("ASCEND_TOOLKIT_HOME", **{"runtime__version.info": "Version=8.1.RC1"})
    assert cann.version() == "8.1.RC1"
    install("ASCEND_HOME_PATH", **{"runtime__version.info": "Version=8.3.RC1"})
    assert cann.version() == "8.3.RC1"
    monkeypatch.setenv("ASCEND_HOME_PATH", "/nowhere/at/all")
    assert cann.version() == ""


@pytest.mark.parametrize(
    ("toolkit", "operators", "expected"),
    [
        ("8.3.RC1", "", "8.3.RC1"),
        ("8.3.RC1", "8.3.RC1", "8.3.RC1"),
        ("8.0.0", "7.6.0.1.220", "8.0.0-opp-7.6.0.1.220"),
        ("", "7.6.0.1.220", "unknown-opp-7.6.0.1.220"),
    ],
)
def test_operators_of_another_version_are_another_build(
    install: Install, toolkit: str, operators: str, expected: str
) -> None:
    record = {"runtime__version.info": f"Version={toolkit}\n"} if toolkit else {}
    install(**record, **({"opp__version.info": f"Version={operators}\n"} if operators else {}))
    assert cann.build() == expected


# ---------------------------------------------------------------------------------------------- in the environment


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package torch-npu seems to be installed."""
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0" if name == "torch-npu" else real(name))


def test_another_cann_is_another_directory(
    install: Install, torch_npu: None, cache: TuningCache, kernel: FakeKernel
) -> None:
    install(**{"runtime__version.info": "Version=8.3.RC1", "opp__version.info": "Version=8.3.RC1"})
    assert environment.versions()["cann"] == "8.3.RC1"
    assert "_torch-npu-2.13.0_" in environment.directory_name()
    assert environment.directory_name().endswith("_cann-8.3.RC1")
    stored = cache.store(NPU, make_entry(NPU))
    assert lookup(PROBLEM, NPU, [kernel]) is not None
    install(**{"opp__version.info": "Version=8.3.RC2"})
    assert environment.versions()["cann"] == "8.3.RC1-opp-8.3.RC2"
    assert lookup(PROBLEM, NPU, [kernel]) is None
    assert cache.directory(NPU) != stored.path.parents[1]  # type: ignore[union-attr]
    install(**{"opp__version.info": "Version=8.3.RC1"})
    assert lookup(PROBLEM, NPU, [kernel]) is not None  # nothing was lost


def test_a_cann_that_nothing_runs_on_does_not_count(install: Install) -> None:
    install(**{"runtime__version.info": "Version=8.3.RC1"})
    assert "cann" not in environment.versions()


def test_an_unknown_cann_is_not_named(install: Install, torch_npu: None) -> None:
    assert "cann" not in environment.versions()
