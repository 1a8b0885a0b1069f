"""The driver is recorded beside the timings: a winner of another driver is served, and marked for a re-check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faops.autotune.cache import TuningCache, environment, lookup, needs_recheck
from faops.device import DeviceProfile, known

from ..support import PROBLEM, FakeKernel, make_entry

H200, NPU = known("h200"), known("910b")


@pytest.fixture
def driver_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which this machine's drivers say their version; it does not exist yet."""
    path = tmp_path / "version"
    files = {vendor: (path, pattern) for vendor, (_, pattern) in environment.DRIVERS.items()}
    monkeypatch.setattr(environment, "DRIVERS", files)
    environment.driver.cache_clear()
    yield path
    environment.driver.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "text", "version"),
    [
        ("nvidia", "570.133.20\n", "570.133.20"),
        ("nvidia", "not loaded\n", ""),
        ("nvidia", "", ""),
        ("ascend", "Version=25.0.rc1.1\nascendhal_version=7.35.23\n", "25.0.rc1.1"),
        ("ascend", "package=x\nVersion = 24.1.0\n", "24.1.0"),
        ("ascend", "nothing\n", ""),
        ("cpu", "570.133.20\n", ""),
    ],
)
def test_the_version_of_the_driver(driver_file: Path, vendor: str, text: str, version: str) -> None:
    driver_file.write_text(text)
    assert environment.driver(vendor) == version


def test_no_driver(driver_file: Path) -> None:
    assert environment.driver("nvidia") == ""


def test_the_driver_is_no_part_of_the_environment(driver_file: Path) -> None:
    driver_file.write_text("570.1\n")
    assert not any("driver" in name for name in environment.versions())


@pytest.mark.parametrize("device", [H200, H200.identity])
def test_an_entry_of_another_driver_is_served_and_to_be_checked(
    cache: TuningCache, kernel: FakeKernel, driver_file: Path, device: DeviceProfile | str
) -> None:
    driver_file.write_text("570.1\n")
    entry = cache.store(H200, make_entry(H200, driver="535.5"))
    assert needs_recheck(entry, device) == "measured with driver 535.5, this is 570.1"
    assert lookup(PROBLEM, H200, [kernel]) is not None


@pytest.mark.parametrize(("measured", "present"), [("570.1", "570.1"), ("", "570.1"), ("570.1", "")])
def test_there_is_nothing_to_check(driver_file: Path, measured: str, present: str) -> None:
    driver_file.write_text(present)
    assert needs_recheck(make_entry(H200, driver=measured), H200) == ""


def test_a_device_of_another_vendor_has_another_driver(driver_file: Path) -> None:
    driver_file.write_text("570.1\n")
    entry = make_entry(NPU, driver="25.0")
    assert needs_recheck(entry, NPU) == "" == needs_recheck(entry, NPU.identity)
