"""Group npu, on made-up Ascend machines, beyond what :mod:`tests.doctor.breakages_of_npus` breaks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from faops.doctor import npu, probes
from faops.doctor.check import Result
from faops.doctor.npu import cann, cards, devices, packages, probe, smi
from tests.doctor import ascend
from tests.doctor.breakages_of_npus import importing, triton_ascend
from tests.doctor.machine import Machine, results_of

SOURCE = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
PROBED = ["import", "operators", "devices", "bfloat16", "numerics"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_machine_in_order(machine: Machine) -> None:
    machine.ascend("2.9.0")
    triton_ascend(machine)
    machine.patch.setattr(torch, "__version__", "2.9.0+cpu")
    (machine.site / "torch_npu-2.9.0.dist-info/METADATA").write_text("Version: 2.9.0\nRequires-Dist: torch==2.9.0.*\n")
    machine.patch.setattr(probes, "installed", without("triton"))
    found = results_of(npu)
    assert {result.status for result in found.values()} == {"ok"}, found
    assert found["files"].summary == "in /dev: davinci0, davinci1, davinci_manager, devmm_svm, hisi_hdc"
    assert found["health"].details == ("0 910B3: OK", "1 910B3: OK")
    assert found["cann"].summary == f"CANN 8.5.0 at {machine.root}/usr/local/Ascend/cann"
    assert found["libraries"].summary == "libascendcl.so, libhccl.so, libopapi.so"
    assert found["pairing"].summary == "torch-npu 2.9.0 with CANN 8.5.0"
    assert found["devices"].details[1] == "npu:1 Ascend910B3 (910B, SoC 223), 20 AI cores, 61 GiB"
    assert found["numerics"].summary == "2 small attentions agree with the float64 reference"


def without(name: str) -> Callable[[str], str | None]:
    usual = probes.installed
    return lambda distribution: None if distribution == name else usual(distribution)


def test_the_order_is_from_the_outside_in() -> None:
    names = [check.id.partition(".")[2] for check in npu.checks()]
    order = ["card", "health", "cann", "libraries", "package", "pairing", *PROBED]
    assert [name for name in names if name in order] == order


def test_doctor_itself_does_not_import_torch_npu(machine: Machine) -> None:
    """A package that would tell of it lies on the path; the child, which may import it, is another program here."""
    machine.ascend()
    importing(machine)
    trace = machine.root / "imported"
    (machine.site / "torch_npu.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    results_of(npu)
    assert "torch_npu" not in sys.modules
    assert not trace.exists()


def test_npu_smi_and_the_child_are_asked_once(machine: Machine) -> None:
    machine.ascend()
    calls = machine.root / "calls"
    for name in ("npu-smi", "probe-npu"):
        script = machine.bin / name
        script.write_text(script.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho {name} >> '{calls}'\n"))
    machine.patch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    results_of(npu)
    assert calls.read_text() == "npu-smi\nprobe-npu\n"


def test_the_child_does_not_load_torch_npu_with_torch(machine: Machine) -> None:
    machine.ascend()
    machine.torch_npu(ends='echo "autoload: $TORCH_DEVICE_BACKEND_AUTOLOAD" >&2; exit 3')
    answer = probe.ask()
    assert answer.ended.last_lines() == ("autoload: 0",)
    assert answer.last == "import"


# --- the card and its driver ------------------------------------------------------------------------------------------


def test_a_card_with_two_chips(machine: Machine) -> None:
    machine.ascend()
    machine.program("npu-smi", ascend.SMI_TWO_CHIPS)
    report = smi.ask()
    assert ([npu.name for npu in report.npus], report.chips) == (["Ascend910", "Ascend910"], 2)
    for value, status in (("1", "ok"), ("0, 1", "ok"), ("2", "warn"), ("0,x", "warn"), ("-1", "warn")):
        machine.patch.setenv("ASCEND_RT_VISIBLE_DEVICES", value)
        assert cards.check_visible(smi.ask).status == status, value


def test_what_gives_a_container_its_devices(machine: Machine) -> None:
    machine.ascend()
    (machine.root / "dev/devmm_svm").unlink()
    assert cards.check_files().fix == cards.INSTALL_DRIVER
    machine.file("run/.containerenv")
    fix = cards.check_files().fix
    assert fix.startswith("docker run ")
    for name in ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc"):
        assert f"--device /dev/{name} " in fix


def test_a_system_on_a_chip_has_other_device_files(machine: Machine) -> None:
    machine.ascend()
    for name in ("devmm_svm", "hisi_hdc"):
        (machine.root / "dev" / name).unlink()
    assert cards.check_files().status == "fail"
    machine.file("dev/svm0")
    assert cards.check_files().status == "ok"


# --- CANN -------------------------------------------------------------------------------------------------------------


def test_the_command_that_sources_cann_names_the_file_that_is_there(machine: Machine) -> None:
    machine.package("torch-npu", "2.7.1.post2")
    assert cann.check_cann().fix == SOURCE
    there = machine.file("usr/local/Ascend/cann/set_env.sh")
    assert cann.check_cann().fix == f"source {there}"


def test_what_mends_a_library_that_does_not_load(machine: Machine) -> None:
    machine.ascend()
    machine.libraries.remove("libopapi.so")
    assert "Ascend-cann-kernels" in cann.check_libraries().fix
    machine.libraries.clear()
    found = cann.check_libraries()
    assert found.fix.startswith("source ")
    assert found.details[1] == "libhccl.so: cannot open shared object file"
    needs_driver = "libascend_hal.so: cannot open shared object file"
    machine.patch.setattr(probes, "loading", lambda names: dict.fromkeys(names, needs_driver))
    assert cann.check_libraries().fix == cards.INSTALL_DRIVER
    machine.file(".dockerenv")
    assert cann.check_libraries().fix == cards.GIVE


def test_operators_of_cann_in_several_libraries(machine: Machine) -> None:
    """Newer ones have libopapi_nn.so and others in place of libopapi.so."""
    machine.ascend()
    machine.libraries.remove("libopapi.so")
    assert cann.check_libraries().status == "fail"
    machine.file("usr/local/Ascend/cann/lib64/libopapi_transformer.so")
    assert cann.check_libraries().status == "fail"
    machine.libraries.add("libopapi_transformer.so")
    assert cann.check_libraries().summary == "libascendcl.so, libhccl.so, libopapi_transformer.so"


@pytest.mark.parametrize(("package", "wanted"), cann.PAIRS.items())
def test_every_pair(machine: Machine, package: str, wanted: str) -> None:
    machine.ascend(package, cann=wanted)
    assert cann.check_pairing().status == "ok"
    set_cann(machine, "7.0.0")
    found = cann.check_pairing()
    assert found.status == "warn"
    assert f"made for CANN {wanted}" in found.summary
    assert f"Ascend-cann-toolkit_{wanted}_linux-" in found.fix


def set_cann(machine: Machine, version: str) -> None:
    for path in (machine.root / "usr/local/Ascend/cann").glob("*/*.info"):
        path.write_text(f"version={version}\n")


@pytest.mark.parametrize(
    ("package", "installed", "fix"),
    [
        ("2.9.0", "8.5.1", ""),
        ("2.9.0", "8.5.RC1", ""),
        ("2.9.0", "9.1.0", "pip install torch-npu==2.9.0.post6"),
        ("2.9.0.post6", "8.5.0", "pip install torch-npu==2.9.0"),
        ("2.7.1.post8", "9.0.0", "pip install torch-npu==2.7.1.post4"),
        ("2.12.0", "9.0.0", "sudo sh Ascend-cann-toolkit_9.1.0_linux-"),
    ],
)
def test_what_mends_a_pair(machine: Machine, package: str, installed: str, fix: str) -> None:
    machine.ascend(package, cann=installed)
    found = cann.check_pairing()
    assert found.status == ("warn" if fix else "ok")
    assert found.fix.startswith(fix)


def test_a_pair_that_is_not_known_is_said_to_be(machine: Machine) -> None:
    machine.ascend("2.13.0", cann="9.2.0")
    found = cann.check_pairing()
    assert found.status == "skipped"
    assert "does not know which CANN torch-npu 2.13.0 is made for; 9.2.0 is installed" in found.summary
    machine.patch.delenv("ASCEND_HOME_PATH")
    assert cann.check_pairing().summary == "the version of CANN is not known"


# --- packages ---------------------------------------------------------------------------------------------------------


def test_torch_npu_asks_for_its_torch_with_a_wildcard(machine: Machine) -> None:
    machine.package("torch-npu", "2.9.0.post2", "torch==2.9.0.*")
    machine.patch.setattr(torch, "__version__", "2.9.0+cpu")
    assert packages.check_package().status == "ok"
    machine.patch.setattr(torch, "__version__", "2.10.0")
    assert packages.check_package().fix == "pip install torch==2.9.0"


def test_without_torch_npu_the_one_for_this_torch_is_named(machine: Machine) -> None:
    machine.program("npu-smi", ascend.SMI)
    machine.patch.setattr(torch, "__version__", "2.7.1+cpu")
    assert packages.check_package().fix == "pip install 'torch-npu==2.7.1.*'"
    found = results_of(npu)
    assert {found[name].summary for name in ("cann", "pairing", "autoload", *PROBED)} == {"torch-npu is not installed"}


def test_triton_ascend_whose_files_are_gone(machine: Machine) -> None:
    machine.ascend()
    assert packages.check_triton().summary == "triton-ascend is not installed"
    triton_ascend(machine).unlink()
    found = packages.check_triton()
    assert found.status == "fail"
    assert found.details == ("triton/backends/ascend/compiler.py",)
    assert found.fix == "pip uninstall --yes triton triton-ascend && pip install triton-ascend==3.2.0"


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ImportError: libhccl.so: cannot open shared object file", SOURCE),
        ("ImportError: /x/libtorch_npu.so: undefined symbol: _ZN2at", "pip install torch==2.9.0"),
        ("RuntimeError: Two accelerators cannot be used at the same time in PyTorch: npu and cuda.",
         "export TORCH_DEVICE_BACKEND_AUTOLOAD=0"),
        ("ModuleNotFoundError: No module named 'yaml'", "pip install yaml"),
        ("ModuleNotFoundError: No module named 'tbe'", SOURCE),
    ],
)  # fmt: skip
def test_what_mends_an_import(machine: Machine, said: str, fix: str) -> None:
    machine.package("torch-npu", "2.9.0.post2", "torch==2.9.0.*")
    assert packages.mending(said) == fix


def test_the_first_of_several_exceptions_is_the_reason(machine: Machine) -> None:
    """PyTorch raises an error of its own from that of torch_npu."""
    machine.ascend()
    said = (
        "Traceback (most recent call last):\n  File\nImportError: libhccl.so: cannot open\n\nThe above exception was "
        "the direct cause of the following exception:\n\nRuntimeError: Failed to load the backend extension: torch_npu."
    )
    importing(machine, said, code=1)
    found = packages.check_autoload()
    assert found.summary == "`import torch` fails: ImportError: libhccl.so: cannot open"
    assert found.fix.startswith("source ")
    assert "  File" not in found.details
    assert found.details[-1] == "RuntimeError: Failed to load the backend extension: torch_npu."


def test_the_import_is_tried_with_loading_turned_on(machine: Machine) -> None:
    machine.ascend()
    machine.patch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    importing(machine, "OSError: loading: $TORCH_DEVICE_BACKEND_AUTOLOAD", code=1)
    assert packages.check_autoload().summary == "`import torch` fails: OSError: loading: 1"


def test_an_import_of_torch_that_hangs(machine: Machine) -> None:
    machine.ascend()
    importing(machine)
    program = machine.program("import-torch", ends=ascend.HANG)
    machine.patch.setattr(packages, "IMPORT", (str(program),))
    machine.patch.setattr(packages, "IMPORT_SECONDS", 0.2)
    assert packages.check_autoload().summary == "`import torch` fails: import-torch timed out: no answer within 0.2 s"


# --- torch_npu and the devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", PROBED)
@pytest.mark.parametrize("how", ["raises", "crashes"])
def test_a_stage_that_fails_is_told_and_those_after_it_are_skipped(machine: Machine, stage: str, how: str) -> None:
    machine.ascend()
    told = ascend.told(until=stage)
    if how == "raises":
        machine.torch_npu(*told, {"stage": stage, "error": "RuntimeError: EZ9999"})
    else:
        machine.torch_npu(*told, ends="echo 'last words' >&2; kill -ABRT $$")
    found = results_of(npu)
    done, left = PROBED[: PROBED.index(stage)], PROBED[PROBED.index(stage) + 1 :]
    assert {found[name].status for name in done} <= {"ok"}
    assert {found[name].summary for name in left} <= {f"not tried: see npu.{stage}"}
    assert found[stage].status == "fail"
    assert found[stage].fix
    assert ("RuntimeError: EZ9999" if how == "raises" else "crashed: SIGABRT") in found[stage].summary
    assert how == "raises" or found[stage].details == ("last words",)


def test_a_stage_that_hangs_keeps_what_was_told_before(machine: Machine) -> None:
    machine.ascend()
    machine.patch.setattr(probe, "LIMIT_SECONDS", 0.5)
    machine.torch_npu(*ascend.told(until="numerics"), ends=ascend.HANG)
    found = results_of(npu)
    assert [found[name].status for name in PROBED] == ["ok"] * 4 + ["fail"]
    assert "no answer within 0.5 s" in found["numerics"].summary


def test_a_crash_after_all_was_told_is_no_fault(machine: Machine) -> None:
    """As CANN may, when the process ends."""
    machine.ascend()
    machine.torch_npu(*ascend.told(), ends="kill -SEGV $$")
    found = results_of(npu)
    assert {found[name].status for name in PROBED} == {"ok"}


def asked(*stages: ascend.Stage) -> probe.Ask:
    told = {str(stage["stage"]): stage for stage in stages}
    return lambda: probe.Answer(told, probes.Ended(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "status"), [("attention", "fail"), ("gradients", "fail"), ("rotary embedding", "warn")]
)
def test_missing_operators(machine: Machine, use: str, status: str) -> None:
    machine.ascend("2.9.0.post2")
    stages = ascend.told(lambda stages: stages["operators"].update(lacking={use: "no npu_this or npu_that"}))
    found = devices.check_operators(asked(*stages))
    assert (found.status, found.fix) == (status, "pip install --upgrade 'torch-npu==2.9.0.*'")
    assert found.details == (f"no {use}: no npu_this or npu_that",)


def test_the_fix_for_a_chip_without_bfloat16_is_a_dtype(machine: Machine) -> None:
    machine.ascend()
    without = {"name": "Ascend310P3", "expected": False, "supported": False, "right": False}
    found: Result = devices.check_bfloat16(asked(*ascend.told(lambda stages: stages["bfloat16"].update(without))))
    assert (found.status, found.fix) == ("warn", "edit the program: dtype=torch.float16")


def test_a_chip_whose_number_is_not_told(machine: Machine) -> None:
    machine.ascend()
    stages = ascend.told(lambda stages: stages["devices"].update(devices=[{**ascend.DEVICE, "soc": 0}]))
    assert "(910B, SoC not told)" in devices.check_devices(asked(*stages)).details[0]


def test_no_operator_to_try(machine: Machine) -> None:
    machine.ascend()
    stages = ascend.told(lambda stages: stages["numerics"].update(tried=[]))
    assert devices.check_numerics(asked(*stages)).status == "warn"
