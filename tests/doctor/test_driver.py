"""Group driver, on made-up machines, beyond what :mod:`tests.doctor.breakages` breaks; and the probes."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from faops.doctor import driver, npu, nvidia, probes
from tests.doctor.machine import Machine, card_xml, results_of, smi_xml


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_without_any_accelerator_all_is_skipped(machine: Machine) -> None:
    found = {**results_of(driver), **results_of(npu)}
    assert {result.status for result in found.values()} == {"skipped"}
    assert found["nvidia"].summary == "no NVIDIA GPU: the torch backend serves the CPU"


def test_a_machine_with_two_cards(machine: Machine) -> None:
    machine.nvidia(card_xml(), card_xml(product_name="NVIDIA L4", total="23034 MiB", free="22601 MiB"))
    found = results_of(driver)
    assert {result.status for result in found.values()} == {"ok"}
    assert found["nvidia"].summary == "driver 580.65.06, 2 NVIDIA GPUs"
    assert found["nvidia"].details == ("0 NVIDIA H200, 143771 MiB", "1 NVIDIA L4, 23034 MiB")
    assert found["memory"].summary == "GPU 0 143,000 MiB free, GPU 1 22,601 MiB free"
    assert found["cuda"].details == ("cuda:0 NVIDIA H200 (sm_90)",)


def test_nvidia_smi_is_asked_once(machine: Machine) -> None:
    machine.nvidia()
    calls = machine.root / "calls"
    script = machine.bin / "nvidia-smi"
    script.write_text(script.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho called >> '{calls}'\n"))
    results_of(driver)
    assert calls.read_text() == "called\n"
    results_of(driver)
    assert calls.read_text() == "called\n" * 2


def test_driver_without_its_tool(machine: Machine) -> None:
    machine.nvidia()
    (machine.bin / "nvidia-smi").unlink()
    found = results_of(driver)
    assert found["nvidia"].summary == "libcuda.so.1 is there (nvidia-smi is not)"
    assert {found[name].status for name in ("mode", "memory", "health")} == {"skipped"}


@pytest.mark.parametrize("answer", ["", "not XML", "<nvidia_smi_log>"])
def test_an_answer_that_cannot_be_read(machine: Machine, answer: str) -> None:
    machine.nvidia()
    machine.program("nvidia-smi", answer)
    result = driver.check_nvidia(nvidia.ask)
    assert (result.status, result.fix) == ("fail", "sudo modprobe nvidia && nvidia-smi")
    assert result.details


def test_after_an_update_of_the_driver_the_machine_wants_a_restart(machine: Machine) -> None:
    machine.nvidia()
    machine.program("nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch", code=18)
    assert driver.check_nvidia(nvidia.ask).fix == "sudo reboot"


def test_fields_that_a_driver_does_not_tell(machine: Machine) -> None:
    """A card in MIG mode tells no memory, and a small card neither errors nor MIG."""
    machine.nvidia()
    machine.program("nvidia-smi", smi_xml("<gpu><product_name>Jetson</product_name></gpu>"))
    found = results_of(driver)
    assert found["memory"].summary == "nvidia-smi tells no memory"
    assert (found["health"].status, found["mode"].status) == ("ok", "ok")


def test_what_mends_a_container(machine: Machine) -> None:
    machine.pci("0x10de", "0x030200")
    assert driver.check_card().fix.startswith("sudo apt-get install nvidia-driver-")
    machine.file(".dockerenv")
    assert driver.check_card().fix == "docker run --gpus all"


def test_cards_that_are_not_for_this_system(machine: Machine) -> None:
    machine.pci("0x10de", "0x040300", "0000:01:00.1")  # the sound device of a card
    machine.pci("0x8086", "0x030000", "0000:00:02.0")  # another vendor's card
    machine.pci("0x10de", "0x030000", "0000:02:00.0")  # handed to a virtual machine
    (machine.root / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    (machine.root / "sys/bus/pci/devices/0000:02:00.0/driver").symlink_to(machine.root / "sys/bus/pci/drivers/vfio-pci")
    assert driver.check_card().status == "skipped"


def test_windows_subsystem_for_linux_has_other_device_files(machine: Machine) -> None:
    machine.libraries.add(nvidia.LIBRARY)
    assert driver.check_files().status == "fail"
    machine.file("dev/dxg")
    assert driver.check_files().status == "ok"


@pytest.mark.parametrize(
    ("value", "status"),
    [("0", "ok"), ("0,1", "ok"), ("1,2", "warn"), ("GPU-8f3c", "ok"), ("", "warn"), ("NoDevFiles", "warn")],
)
def test_visible_cards(machine: Machine, value: str, status: str) -> None:
    machine.nvidia(card_xml(), card_xml())
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert driver.check_visible(nvidia.ask).status == status


def test_a_newer_minor_version_of_cuda_is_fine(machine: Machine) -> None:
    machine.nvidia(cuda=(12, 2), built="12.8")
    assert driver.check_version(nvidia.ask).status == "ok"


def test_torch_without_cuda_beside_a_driver(machine: Machine) -> None:
    machine.nvidia(built=None)
    result = driver.check_cuda()
    assert result.status == "warn"
    assert "built without CUDA" in result.summary
    assert "pip install torch" in result.fix


def test_torch_that_finds_no_gpu_tells_why(machine: Machine) -> None:
    machine.nvidia()

    def unavailable() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=1)
        return False

    machine.patch.setattr(torch.cuda, "is_available", unavailable)
    result = driver.check_cuda()
    assert result.status == "fail"
    assert result.details == ("The NVIDIA driver on your system is too old",)
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert driver.check_cuda().fix == "unset CUDA_VISIBLE_DEVICES"


def test_rocm(machine: Machine) -> None:
    machine.patch.setattr(torch.version, "hip", "6.4")
    assert driver.check_cuda().summary == "PyTorch is built for ROCm 6.4"


@pytest.mark.parametrize(
    ("built", "status"),
    [
        (("sm_80", "sm_90"), "ok"),
        (("sm_80",), "fail"),
        (("sm_70", "compute_80"), "ok"),
        (("sm_100a",), "fail"),
        ((), "fail"),
    ],
)
def test_architectures(machine: Machine, built: tuple[str, ...], status: str) -> None:
    machine.nvidia()
    machine.torch_gpu(archs=built)
    result = driver.check_cuda()
    assert result.status == status
    if status == "fail":
        assert "no code for cuda:0 NVIDIA H200 (sm_90)" in result.summary


# --- probes -----------------------------------------------------------------------------------------------------------


def test_probes_never_raise(tmp_path: Path) -> None:
    assert probes.program("no-such-program-anywhere") is None
    assert probes.output_of(["no-such-program-anywhere"])[0] is False
    assert probes.output_of([sys.executable, "-c", "print('hello')"]) == (True, "hello")
    assert probes.output_of([sys.executable, "-c", "import sys; sys.exit('sorry')"]) == (False, "sorry")
    assert probes.library("libnosuchlibrary.so.99") is False
    assert probes.installed("no-such-distribution") is None
    assert probes.installed("torch") is not None
    assert probes.required("no-such-distribution", "torch") is None
    assert probes.can_be_written(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    program = tmp_path / "program"
    program.touch(0o777)
    assert not probes.can_be_written(program / "below")


def test_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 0.2)
    start = time.perf_counter()
    ended, said = probes.output_of([sys.executable, "-c", "import time; time.sleep(30)"])
    assert not ended
    assert "timed out: no answer within 0.2 s" in said
    assert time.perf_counter() - start < 10


def test_what_a_program_printed_before_its_end_is_kept() -> None:
    ended = probes.run(["sh", "-c", "echo before; echo why >&2; kill -SEGV $$"])
    assert (ended.code, ended.out, ended.reason) == (-11, "before\n", "crashed: SIGSEGV")
    assert ended.last_lines() == ("why",)
    ended = probes.run(["sh", "-c", "echo before; while :; do :; done"], 0.2)
    assert (ended.code, ended.out, ended.reason) == (None, "before\n", "sh timed out: no answer within 0.2 s")
    ended = probes.run(["sh", "-c", "echo 1; echo 2; exit 3"])
    assert (ended.code, ended.reason, ended.last_lines(1)) == (3, "exit code 3", ("2",))
    assert probes.run(["no-such-program-anywhere"]).code is None


def test_what_a_hanging_program_started_ends_with_it(tmp_path: Path) -> None:
    script = f"(while :; do sleep 0.05; echo alive > '{tmp_path}/mark'; done) & wait"
    assert probes.run(["sh", "-c", script], 0.3).code is None
    mark = tmp_path / "mark"
    mark.unlink(missing_ok=True)
    time.sleep(0.2)
    assert not mark.exists()


def test_a_program_has_the_environment_that_is_added() -> None:
    ended = probes.run(["sh", "-c", 'echo "$ADDED in $HOME"'], environment={"ADDED": "7"})
    assert ended.out == f"7 in {os.environ['HOME']}\n"


def test_libraries_are_loaded_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    said = probes.loading(["libc.so.6", "libnosuchlibrary.so.99"])
    assert said["libc.so.6"] == ""
    assert "cannot open shared object file" in said["libnosuchlibrary.so.99"]
    crashing = probes.LOADING.replace("ctypes.CDLL(name)", "'crash' in name and ctypes.string_at(0)")
    monkeypatch.setattr(probes, "LOADING", crashing)
    assert probes.loading(["fine.so", "crash.so", "after.so"]) == {
        "fine.so": "", "crash.so": "crashed: SIGSEGV", "after.so": "crashed: SIGSEGV",
    }  # fmt: skip


def test_a_program_that_waits_for_input_gets_none() -> None:
    assert probes.output_of([sys.executable, "-c", "print(repr(input.__name__), open(0).read() == '')"])[0]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("triton==3.5.0; platform_system == 'Linux'", "3.5.0"),
        ("triton (==3.5.0)", "3.5.0"),
        ("triton>=3.0", None),
        ("pytorch-triton==3.5.0", None),
        ("triton==3.5.0.*", "3.5.0"),
        ("triton (==3.5.*)", "3.5"),
        ("triton==3.5.0+git1; python_version > '3'", "3.5.0+git1"),
    ],
)
def test_exact_requirements(machine: Machine, text: str, version: str | None) -> None:
    machine.package("some-package", "1.0", "numpy", text)
    assert probes.required("some-package", "triton") == version


def test_file_system_of_a_directory(machine: Machine, tmp_path: Path) -> None:
    lines = ("/dev/sda1 / ext4 rw 0 0", "tmpfs /data tmpfs rw 0 0", r"server:/x /data/with\040space nfs4 rw 0 0")
    machine.file("proc/self/mounts", "\n".join([*lines, "proc /proc proc rw 0 0"]))
    kinds = {"/data": "tmpfs", "/data/with space/deep": "nfs4", "/database": "ext4", "/": "ext4"}
    assert {name: probes.filesystem(Path(name)) for name in kinds} == kinds
    machine.file("proc/self/mounts", "\n".join(reversed(lines)))
    assert {name: probes.filesystem(Path(name)) for name in kinds} == kinds
    machine.patch.setattr(probes, "ROOT", tmp_path / "nowhere")
    assert probes.filesystem(Path("/data")) == ""
