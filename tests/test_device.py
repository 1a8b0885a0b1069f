"""Device profiles: the table of known devices, detection from what a driver says, identities."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from faops import device as device_module
from faops.architectures import ARCHITECTURES, KNOWN_DEVICES, limits
from faops.device import DeviceProfile, detect, known
from faops.errors import ArgumentError

KIB, MIB, GIB = 1024, 1024**2, 1024**3


@pytest.fixture(autouse=True)
def forget_detected() -> None:
    device_module._detect.cache_clear()


@pytest.mark.parametrize("name", list(KNOWN_DEVICES))
def test_known_devices_are_complete(name: str) -> None:
    profile = known(name)
    published = KNOWN_DEVICES[name]
    assert published.source
    assert profile.arch in ARCHITECTURES
    assert profile.units == published.units > 0
    assert profile.memory_bytes >= 11 * GIB
    assert profile.bandwidth > 100e9
    assert profile.torch_type == ("npu" if profile.vendor == "ascend" else "cuda")
    assert known(name.upper()) == profile


@pytest.mark.parametrize(
    ("name", "family", "bfloat16", "async_copy", "tma", "fp8"),
    [
        ("t4", "turing", False, False, False, False),
        ("a100", "ampere", True, True, False, False),
        ("4090", "ada", True, True, False, True),
        ("h200", "hopper", True, True, True, True),
        ("b200", "blackwell", True, True, True, True),
        ("910b", "ascend", True, True, False, False),
        ("910c", "ascend", True, True, False, False),
        ("950", "ascend", True, True, False, True),
        ("310p", "ascend", False, True, False, False),
    ],
)
def test_families_and_what_they_can(
    name: str, family: str, bfloat16: bool, async_copy: bool, tma: bool, fp8: bool
) -> None:
    profile = known(name)
    limit = profile.limits
    assert profile.family == family == limit.family
    assert (limit.bfloat16, limit.async_copy, limit.tma, limit.fp8) == (bfloat16, async_copy, tma, fp8)


def test_shared_memory_limits() -> None:
    """Opt-in shared memory per block, from the programming guide's table."""
    published = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
    for arch, kib in published.items():
        assert limits(arch).shared_per_block == kib * KIB
    for arch, limit in ARCHITECTURES.items():
        assert limit.source, arch
        assert limit.shared_per_block <= limit.shared_per_unit


def test_unknown_architectures_get_safe_limits() -> None:
    newer = limits("sm_137")
    assert newer.shared_per_block == min(
        limit.shared_per_block for arch, limit in ARCHITECTURES.items() if arch.startswith("sm_") and arch != "sm_75"
    )
    assert limits("x86_64-avx2").family == "cpu"


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"device: got 'voodoo2', expected one of cpu, t4, .*h200"):
        known("voodoo2")


def test_cpu_profile_describes_this_host() -> None:
    profile = detect("cpu")
    assert profile == detect(torch.device("cpu")) == known("cpu")
    assert (profile.vendor, profile.family, profile.torch_type) == ("cpu", "cpu", "cpu")
    assert profile.units >= 1
    assert profile.memory_bytes > 0
    assert profile.name


def test_cpu_profile_follows_the_thread_count() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = detect("cpu")
        torch.set_num_threads(2)
        two = detect("cpu")
    finally:
        torch.set_num_threads(before)
    assert (one.threads, two.threads) == (1, 2)
    assert one.identity != two.identity


def test_identity_holds_what_may_change_the_fastest_config() -> None:
    base = known("h200")
    for name in ("vendor", "arch", "name", "mig"):
        assert replace(base, **{name: "other"}).identity != base.identity
    for name in ("units", "l2_bytes", "shared_bytes", "threads", "soc"):
        assert replace(base, **{name: 7 * MIB}).identity != base.identity
    assert len({known(name).identity for name in KNOWN_DEVICES}) == len(KNOWN_DEVICES)


def test_identity_is_a_safe_directory_name() -> None:
    odd = replace(known("t4"), name="Odd / name: ../../etc\n*", mig="1g.10gb")
    assert "/" not in odd.identity
    assert "\n" not in odd.identity
    assert not odd.identity.startswith(".")


def test_profile_round_trips_through_a_dict() -> None:
    profile = known("a100")
    assert DeviceProfile(**profile.as_dict()) == profile
    assert set(profile.as_dict()) == {item.name for item in fields(DeviceProfile)}


def cuda_properties(**changes: object) -> SimpleNamespace:
    values = {
        "major": 9, "minor": 0, "name": "NVIDIA H200", "multi_processor_count": 132, "L2_cache_size": 60 * MIB,
        "shared_memory_per_block_optin": 227 * KIB, "total_memory": 141 * GIB,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def detect_cuda(monkeypatch: pytest.MonkeyPatch, **changes: object) -> DeviceProfile:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cuda_properties(**changes))
    return detect("cuda:0")


def test_detection_prefers_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = detect_cuda(monkeypatch)
    assert (profile.family, profile.arch, profile.units) == ("hopper", "sm_90", 132)
    assert profile.l2_bytes == 60 * MIB
    assert profile.bandwidth == KNOWN_DEVICES["h200"].bandwidth
    assert profile.mig == ""


def test_detection_of_a_mig_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = detect_cuda(monkeypatch, name="NVIDIA H200 MIG 1g.18gb", multi_processor_count=16)
    assert profile.mig == "1g.18gb"
    assert profile.units == 16
    assert profile.identity != known("h200").identity


def test_detection_of_an_architecture_from_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = detect_cuda(monkeypatch, major=14, minor=2, name="NVIDIA Z9")
    assert (profile.family, profile.arch) == ("newer", "sm_142")
    assert profile.bandwidth == 0.0


def test_detection_of_an_amd_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: cuda_properties(name="AMD MI300X", gcnArchName="gfx942")
    )
    profile = detect("cuda:0")
    assert (profile.vendor, profile.arch, profile.torch_type) == ("amd", "gfx942", "cuda")


class NpuDevice(NamedTuple):
    """Stands for torch.device("npu:0"), which torch makes only where torch_npu is installed."""

    type: str = "npu"
    index: int = 0


class Npu(SimpleNamespace):
    """Stands for torch.npu with one device; ``soc`` None: get_soc_version is not there, an error: it is raised."""

    def __init__(self, name: str, soc: int | Exception | None = None, **told: object) -> None:
        super().__init__(get_device_name=lambda index: name, mem_get_info=lambda index: (1, 64 * GIB))
        if soc is not None:
            self.utils = SimpleNamespace(get_soc_version=lambda: raised_or_given(soc))
        if told:
            self.get_device_properties = lambda index: SimpleNamespace(name=name, **told)


def raised_or_given(value: int | Exception) -> int:
    if isinstance(value, Exception):
        raise value
    return value


def detect_npu(monkeypatch: pytest.MonkeyPatch, npu: Npu) -> DeviceProfile:
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    device_module._detect.cache_clear()
    return device_module._detect(NpuDevice())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "soc", "arch", "bfloat16"),
    [
        ("Ascend910B3", 223, "910B", True),
        ("Ascend910B4-1", 225, "910B", True),
        ("Ascend910_9391", 250, "910C", True),
        ("Ascend910_9363", 256, "910C", True),
        ("Ascend310P3", 202, "310P", False),
        ("Ascend310P7", 205, "310P", False),
        ("Ascend950PR_9579", 260, "950", True),
        ("Ascend910B", 104, "910", False),  # the first generation's last member, whose name looks like an A2
        ("Ascend910ProB", 103, "910", False),
        ("Ascend310B4", 243, "310B", True),
        ("Ascend960", 270, "ascend-unknown", True),
        ("Ascend910B9", 226, "ascend-unknown", True),  # the number decides
    ],
)
def test_detection_of_ascend_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, soc: int, arch: str, bfloat16: bool
) -> None:
    profile = detect_npu(monkeypatch, Npu(name, soc))
    assert (profile.vendor, profile.family, profile.arch) == ("ascend", "ascend", arch)
    assert (profile.name, profile.soc, profile.torch_type) == (name, soc, "npu")
    assert profile.memory_bytes == 64 * GIB
    assert profile.limits.family == "ascend"
    assert profile.limits.bfloat16 == bfloat16
    assert profile.shared_bytes == profile.limits.shared_per_block >= 192 * KIB
    assert f"soc-{soc}" in profile.identity


@pytest.mark.parametrize("soc", [None, RuntimeError("Unsupported soc version")], ids=["not told", "refused"])
@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("Ascend910B3", "910B"),
        ("Ascend910B", "910"),
        ("Ascend910A", "910"),
        ("Ascend910_9382", "910C"),
        ("Ascend910C", "910C"),
        ("Ascend310P3", "310P"),
        ("Ascend310B1", "310B"),
        ("Ascend950DT_95A1", "950"),
        ("Ascend910_9579", "950"),
        ("Ascend910Z", "ascend-unknown"),
        ("Ascend910BX", "ascend-unknown"),
        ("", "ascend-unknown"),
    ],
)
def test_without_a_number_the_name_tells_the_ascend_architecture(
    monkeypatch: pytest.MonkeyPatch, name: str, arch: str, soc: Exception | None
) -> None:
    profile = detect_npu(monkeypatch, Npu(name, soc))
    assert (profile.arch, profile.soc) == (arch, 0)
    assert "soc-" not in profile.identity


def test_an_ascend_device_tells_its_cores_and_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"cube_core_num": 23, "vector_core_num": 46, "L2_cache_size": 96 * MIB, "total_memory": 31 * GIB}
    profile = detect_npu(monkeypatch, Npu("Ascend910B2", 221, **told))
    assert (profile.units, profile.l2_bytes, profile.memory_bytes) == (23, 96 * MIB, 31 * GIB)
    assert (profile.bandwidth, profile.matrix_flops) == (0.0, 0.0)  # published of the 910B3 alone


def test_an_ascend_device_that_tells_only_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before torch_npu 2.7.1. Cores and cache are those of its architecture, rates those of this very chip."""
    profile = detect_npu(monkeypatch, Npu("Ascend910B3", 223, total_memory=61 * GIB))
    published = known("910b")
    assert (profile.units, profile.l2_bytes) == (published.units, published.l2_bytes) == (20, 192 * MIB)
    assert (profile.bandwidth, profile.matrix_flops) == (published.bandwidth, published.matrix_flops)
    assert (profile.memory_bytes, profile.soc) == (61 * GIB, published.soc)


def test_an_ascend_device_newer_than_the_table_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = detect_npu(monkeypatch, Npu("Ascend970", 280))
    assert (profile.units, profile.l2_bytes, profile.bandwidth) == (0, 0, 0.0)
    ascend = [limit.shared_per_block for limit in ARCHITECTURES.values() if limit.family == "ascend"]
    assert profile.shared_bytes == min(ascend)
    assert "newer" in profile.limits.source


def test_members_of_an_ascend_architecture_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results tuned on one SoC are not used on another."""
    one, other = (detect_npu(monkeypatch, Npu("Ascend910B", soc)).identity for soc in (220, 223))
    assert one != other


@pytest.mark.parametrize("name", ["310p", "910b", "910c", "950"])
def test_known_ascend_chips_are_found_by_their_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    planned = known(name)
    found = detect_npu(monkeypatch, Npu(planned.name.replace(" ", ""), planned.soc))
    assert replace(found, name=planned.name, memory_bytes=planned.memory_bytes) == planned
