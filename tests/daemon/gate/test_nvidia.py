"""Whether an NVIDIA GPU is idle, as a made-up driver tells: no GPU is needed, and none has confirmed this."""

from __future__ import annotations

import os
import sys

import pytest

from faops.daemon.config import Config
from faops.daemon.gate.gate import Reading
from faops.daemon.gate.nvidia import Nvidia

from .fake_nvml import Pynvml
from .support import CHILD, OTHER, SERVER, Clock, Gpu

REGARDLESS = "daemon_idle_gate: 0 in faops.yaml tunes regardless"


# --- nothing of ours on it ------------------------------------------------------------------------------------------


def test_an_idle_gpu(gpu: Gpu) -> None:
    figures = {"others": 0.0, "others_memory_bytes": 0.0, "utilisation": 0.0, "others_utilisation": 0.0}
    assert gpu.look() == Reading("", figures)


def test_all_use_is_that_of_others(gpu: Gpu) -> None:
    gpu.pynvml.utilisation = 5
    assert gpu.busy() == ""
    gpu.pynvml.utilisation = 84
    found = gpu.look()
    assert found.busy == "other programs use 84 % of the GPU"
    assert found.figures["utilisation"] == 84.0
    gpu.config = Config(busy_percent=90.0)
    assert gpu.busy() == ""


def test_who_uses_it_is_named(gpu: Gpu) -> None:
    gpu.busy()
    gpu.pynvml.use(OTHER, 84)
    found = gpu.look()
    assert found.busy == f"pid {OTHER} uses 84 % of the GPU"
    assert found.figures["others_utilisation"] == 84.0
    assert gpu.busy() == ""  # that was before
    gpu.pynvml.use(OTHER, 30)
    gpu.pynvml.use(SERVER, 60)
    assert gpu.busy() == f"2 other programs use 90 % of the GPU, most of it pid {SERVER}"
    gpu.pynvml.use(OTHER, 30)
    gpu.pynvml.use(OTHER, 40)
    gpu.pynvml.use(OTHER, 20)
    assert gpu.busy() == f"pid {OTHER} uses 40 % of the GPU"


def test_the_use_of_many_counts_together(gpu: Gpu) -> None:
    gpu.busy()
    for pid in (901, 902, 903):
        gpu.pynvml.use(pid, 2)
    assert "3 other programs use 6 %" in gpu.busy()


def test_who_only_holds_memory_does_not_count(gpu: Gpu) -> None:
    gpu.pynvml.memory = {SERVER: 40 << 30, OTHER: None}
    found = gpu.look()
    assert found.busy == ""
    assert (found.figures["others"], found.figures["others_memory_bytes"]) == (2.0, float(40 << 30))


def test_what_was_before_the_first_look_does_not_count(gpu: Gpu) -> None:
    gpu.pynvml.use(OTHER, 84)
    assert gpu.busy() == ""
    assert gpu.busy() == ""


@pytest.mark.parametrize("percent", [0, 101, 2**32 - 1])
def test_nonsense_is_no_use(gpu: Gpu, percent: int) -> None:
    gpu.busy()
    gpu.pynvml.use(OTHER, percent)
    assert gpu.busy() == ""


# --- while we tune --------------------------------------------------------------------------------------------------


def test_our_use_does_not_count(gpu: Gpu) -> None:
    gpu.busy()
    gpu.tune()
    gpu.pynvml.utilisation, gpu.pynvml.memory = 100, {CHILD: 1 << 30, SERVER: 5}
    for _ in range(8):
        gpu.pynvml.use(CHILD, 97)
        found = gpu.look(0.25)
        assert found.busy == ""
        assert (found.figures["others"], found.figures["others_utilisation"]) == (1.0, 0.0)


def test_others_are_seen_beside_us(gpu: Gpu) -> None:
    gpu.busy()
    gpu.tune()
    gpu.pynvml.utilisation = 100
    gpu.pynvml.use(CHILD, 60)
    gpu.pynvml.use(OTHER, 38)
    assert gpu.busy(0.25) == f"pid {OTHER} uses 38 % of the GPU"


def test_what_the_driver_still_tells_of_us_does_not_count(gpu: Gpu) -> None:
    gpu.tune()
    gpu.pynvml.memory = {CHILD: 1}
    gpu.busy()
    gpu.own, gpu.pynvml.memory = {os.getpid()}, {}
    gpu.pynvml.utilisation = 80
    gpu.pynvml.use(CHILD, 80)
    assert gpu.busy() == ""
    assert gpu.busy(0.5) == ""
    assert gpu.busy(0.5) == "other programs use 80 % of the GPU"
    gpu.pynvml.use(CHILD, 80)  # by now another process that got its number
    assert gpu.busy() == f"pid {CHILD} uses 80 % of the GPU"


def test_others_are_seen_while_ours_ends(gpu: Gpu) -> None:
    gpu.tune()
    gpu.busy()
    gpu.own = {os.getpid()}
    gpu.pynvml.use(OTHER, 80)
    assert gpu.busy(0.25) == f"pid {OTHER} uses 80 % of the GPU"


def test_where_no_process_is_told_those_that_came_count(gpu: Gpu) -> None:
    gpu.pynvml.fail("uses")
    gpu.pynvml.memory = {SERVER: 5}
    assert gpu.busy() == ""
    gpu.tune()
    gpu.pynvml.utilisation, gpu.pynvml.memory = 100, {SERVER: 5, CHILD: 1}
    assert gpu.busy() == ""
    gpu.pynvml.memory[OTHER] = 1
    found = gpu.look()
    assert found.busy == f"pid {OTHER} came to the GPU"
    assert "others_utilisation" not in found.figures


def test_where_only_others_are_seen_all_use_is_theirs(gpu: Gpu) -> None:
    """A child of ours lives, but works on another device."""
    gpu.pynvml.fail("uses")
    gpu.pynvml.utilisation, gpu.pynvml.memory = 90, {SERVER: 5}
    gpu.tune()
    assert gpu.busy() == "other programs use 90 % of the GPU"
    gpu.pynvml.memory = {SERVER: 5, CHILD: 1}
    assert gpu.busy() == ""
    gpu.pynvml.memory = {}
    assert gpu.busy(5) == ""  # where nobody is seen, ours may be there unseen


def test_who_came_before_our_child_began_to_compute_may_stay(gpu: Gpu) -> None:
    gpu.pynvml.fail("uses")
    gpu.tune()
    gpu.busy()
    gpu.pynvml.memory = {SERVER: 5}
    assert gpu.busy() == ""
    gpu.pynvml.memory = {SERVER: 5, CHILD: 1}
    assert gpu.busy() == ""
    gpu.pynvml.memory = {SERVER: 5, CHILD: 1, OTHER: 1}
    assert gpu.busy() == f"pid {OTHER} came to the GPU"


def test_where_each_share_is_told_the_whole_does_not_matter(gpu: Gpu) -> None:
    gpu.pynvml.fail("rates")
    gpu.pynvml.memory = {SERVER: 5}
    assert gpu.busy() == ""
    gpu.pynvml.use(SERVER, 50)
    assert gpu.busy() == f"pid {SERVER} uses 50 % of the GPU"


# --- instances (MIG), which tell no use -----------------------------------------------------------------------------


@pytest.fixture
def instance(gpu: Gpu) -> Gpu:
    gpu.pynvml.fail("uses", "rates")
    return gpu


def test_on_an_instance_every_process_counts(instance: Gpu) -> None:
    assert instance.look() == Reading("", {"others": 0.0, "others_memory_bytes": 0.0})
    instance.pynvml.memory = {SERVER: 5, OTHER: 6}
    assert instance.busy() == (f"pid {OTHER}, {SERVER} on the GPU, of which no use is told (as of MIG instances)")


def test_on_an_instance_others_count_beside_us_too(instance: Gpu) -> None:
    instance.busy()
    instance.tune()
    instance.pynvml.memory = {CHILD: 1}
    assert instance.busy() == ""
    instance.pynvml.memory[OTHER] = 1
    assert instance.busy() == f"pid {OTHER} on the GPU, of which no use is told (as of MIG instances)"
    del instance.pynvml.memory[OTHER]
    assert instance.busy() == ""


def test_where_nothing_at_all_is_told(gpu: Gpu) -> None:
    gpu.pynvml.fail("rates", "processes", "uses")
    assert "the driver tells nothing of the GPU" in gpu.busy()
    gpu.pynvml.fail("rates", "processes")
    assert gpu.busy(10) == ""


@pytest.mark.parametrize(("name", "uuid"), [("GPU-1", "GPU-1"), ("GPU-1", "1"), ("MIG-1", "MIG-1"), ("MIG-1", "1")])
def test_uuids_with_and_without_prefix(pynvml: Pynvml, name: str, uuid: str) -> None:
    pynvml.name = name
    assert Nvidia(uuid, Clock()).read((), Config()).busy == ""


# --- a driver that cannot be asked ----------------------------------------------------------------------------------


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu = Gpu(Pynvml())
    assert gpu.busy() == (
        "nobody tells how busy the GPU is: nvidia-ml-py is not installed: pip install nvidia-ml-py; or " + REGARDLESS
    )
    gpu.sensor.close()


def test_without_a_uuid(pynvml: Pynvml) -> None:
    assert "torch is too old to say its UUID" in Nvidia("", Clock()).read((), Config()).busy
    assert pynvml.asked == []


def test_it_is_asked_again_after_a_while(gpu: Gpu) -> None:
    gpu.pynvml.fail("init", error=gpu.pynvml.NVMLError)
    assert "the driver cannot be asked: init failed" in gpu.busy()
    assert "the driver cannot be asked: init failed" in gpu.busy(9)
    assert gpu.pynvml.asked == ["init"]
    gpu.pynvml.failing = {}
    assert gpu.busy(1) == ""
    assert gpu.pynvml.open == 1


def test_a_gpu_that_the_driver_does_not_know(gpu: Gpu) -> None:
    gpu.pynvml.name = "GPU-other"
    assert "the driver does not know GPU-1234: Not Found" in gpu.busy()
    assert gpu.pynvml.open == 0


def test_a_gpu_that_is_lost_meanwhile(gpu: Gpu) -> None:
    assert gpu.busy() == ""
    gpu.pynvml.fail("rates", "uses", "processes", error=gpu.pynvml.NVMLError)
    assert "the driver tells nothing of the GPU" in gpu.busy()
    assert gpu.pynvml.open == 0
    gpu.pynvml.failing = {}
    assert gpu.busy(10) == ""
    assert gpu.pynvml.open == 1


@pytest.mark.parametrize("error", ["NVMLLibraryMismatchError", "AttributeError"])
def test_functions_that_are_missing_tell_nothing(gpu: Gpu, error: str) -> None:
    kind = AttributeError if error == "AttributeError" else gpu.pynvml.NVMLLibraryMismatchError
    gpu.pynvml.fail("processes", "uses", error=kind)
    gpu.pynvml.utilisation = 50
    assert gpu.busy() == "other programs use 50 % of the GPU"


def test_no_use_may_be_told_as_an_error_of_success(gpu: Gpu) -> None:
    class NVMLError(gpu.pynvml.NVMLError):  # type: ignore[name-defined, misc]
        value = 0

    gpu.pynvml.fail("uses", error=NVMLError)
    gpu.tune()
    gpu.pynvml.memory = {OTHER: 1}
    found = gpu.look()
    assert (found.busy, found.figures["others_utilisation"]) == ("", 0.0)


def test_a_look_asks_little_and_begins_once(gpu: Gpu) -> None:
    gpu.busy()
    gpu.pynvml.asked.clear()
    for _ in range(3):
        gpu.busy()
    assert sorted(gpu.pynvml.asked) == ["processes"] * 3 + ["rates"] * 3 + ["uses"] * 3
    gpu.sensor.close()
    assert gpu.pynvml.open == 0
