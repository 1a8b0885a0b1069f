"""How the checks of triton, cache, settings and kernels are broken; see :mod:`tests.doctor.breakages`."""

from __future__ import annotations

import functools
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faops import registry
from faops.autotune.cache import TuningCache, environment, misses
from faops.autotune.cache.entry import file_name
from faops.autotune.tuner import pending
from faops.device import detect
from faops.registry import Kernel
from tests.autotune.support import PROBLEM, make_entry
from tests.doctor.breakages import breaks
from tests.doctor.machine import Machine, able_to_run

# --- triton -----------------------------------------------------------------------------------------------------------


@breaks("triton.version")
def old_triton(machine: Machine) -> Iterator[str]:
    machine.package("triton", "3.9.0")
    yield ""
    _replace_triton(machine, "3.1.0")
    yield "Triton 3.1.0 is too old"


@breaks("triton.version")
def triton_of_another_torch(machine: Machine) -> Iterator[str]:
    machine.package("triton", "3.9.0")
    machine.package("torch", "2.13.0", "triton==3.9.0; platform_system == 'Linux'")
    yield ""
    _replace_triton(machine, "3.8.0")
    yield "is not the one that PyTorch"


def _replace_triton(machine: Machine, version: str) -> None:
    from faops.backends.triton import versions

    metadata = f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n"
    (machine.site / "triton-3.9.0.dist-info/METADATA").write_text(metadata)
    versions._version.cache_clear()


@breaks("triton.interpreter")
def interpreting(machine: Machine) -> Iterator[str]:
    machine.patch.setenv("TRITON_INTERPRET", "0")
    yield ""
    machine.patch.setenv("TRITON_INTERPRET", "1")
    yield "TRITON_INTERPRET=1 is set"


@breaks("triton.compiler")
def no_compiler_for_the_launcher(machine: Machine) -> Iterator[str]:
    _with_triton(machine)
    machine.program("gcc", "gcc 12.2")
    yield ""
    (machine.bin / "gcc").unlink()
    yield "no C compiler for Triton"


@breaks("triton.compiler")
def no_headers(machine: Machine) -> Iterator[str]:
    _with_triton(machine)
    machine.program("clang", "clang 17")
    yield ""
    (machine.root / "include/Python.h").unlink()
    yield "Python.h is not there"


@breaks("triton.assembler")
def assembler_that_does_not_run(machine: Machine) -> Iterator[str]:
    machine.package("triton", "3.9.0")
    machine.patch.setenv("TRITON_PTXAS_PATH", str(machine.program("ptxas", "Cuda compilation tools, release 12.8")))
    yield ""
    (machine.bin / "ptxas").chmod(0o644)
    yield "Permission denied"


@breaks("triton.cache")
def triton_cannot_write(machine: Machine) -> Iterator[str]:
    _with_triton(machine)
    machine.patch.setenv("TRITON_CACHE_DIR", str(machine.root / "cache"))
    yield ""
    machine.patch.setenv("TRITON_CACHE_DIR", str(machine.file("in/the/way") / "cache"))
    yield "cannot be written"


@breaks("triton.compile")
def triton_that_cannot_be_imported(machine: Machine) -> Iterator[str]:
    machine.package("triton", "3.9.0")
    (machine.site / "triton").mkdir()
    (machine.site / "triton/__init__.py").write_text("raise ImportError('libtriton.so: undefined symbol')\n")
    machine.patch.setenv("PYTHONPATH", str(machine.site))  # for the process that compiles
    yield ""
    yield "no kernel can be compiled for sm_80"


def _with_triton(machine: Machine) -> None:
    """Triton beside a card, with Python's headers."""
    machine.package("triton", "3.9.0")
    machine.torch_gpu()
    include = machine.file("include/Python.h").parent
    machine.patch.setattr(sysconfig, "get_path", lambda name: str(include))


# --- cache ------------------------------------------------------------------------------------------------------------


@breaks("cache.directory")
def directory_under_a_file(machine: Machine) -> Iterator[str]:
    yield ""
    machine.patch.setenv("FAOPS_CACHE_DIR", str(machine.file("in/the/way") / "cache"))
    yield "cannot be written: Not a directory"


@breaks("cache.directory")
def full_disk(machine: Machine) -> Iterator[str]:
    yield ""

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    machine.patch.setattr("os.fsync", refuse)
    yield "No space left on device"


@breaks("cache.space")
def little_room(machine: Machine) -> Iterator[str]:
    machine.patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    yield ""
    machine.patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=50 * 2**20))
    yield "50 MiB free"


@breaks("cache.locks")
def server_without_locks(machine: Machine) -> Iterator[str]:
    machine.file("proc/self/mounts", "server:/home / nfs4 rw 0 0\n")
    yield ""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    machine.patch.setattr("fcntl.flock", refuse)
    yield "the nfs4 file system of another machine"


@breaks("cache.clock")
def future_file(machine: Machine) -> Iterator[str]:
    path = _stored()
    yield ""
    os.utime(path, (time.time() + 1e6,) * 2)
    yield "1 files are dated in the future"


@breaks("cache.leftovers")
def killed_writer(machine: Machine) -> Iterator[str]:
    left = _stored().with_name(".half-written.tmp")
    left.write_text("{")  # as young as that of a process at work
    yield ""
    os.utime(left, (time.time() - 7200,) * 2)
    yield "1 temporary files of killed processes"


@breaks("cache.entries")
def truncated_entry(machine: Machine) -> Iterator[str]:
    path = _stored()
    yield ""
    path.write_text(path.read_text()[:100])
    yield "1 of 1 tuning results cannot be read"


@breaks("cache.stale")
def changed_kernel(machine: Machine) -> Iterator[str]:
    kernel = _kernel()
    _stored(kernel=kernel.id, source_hash=kernel.source_hash(), default_kernel=kernel.id)
    yield ""
    _stored(kernel=kernel.id, source_hash="of another version", default_kernel=kernel.id)
    yield "1 tuning result of kernels that have changed since"


@breaks("cache.stale")
def other_torch(machine: Machine) -> Iterator[str]:
    yield ""
    _stored(environment={**environment.versions(), "torch": "2.6.0"})
    yield "all 1 tuning result from other versions"


@breaks("cache.stale")
def other_driver(machine: Machine) -> Iterator[str]:
    kernel = _kernel()
    machine.patch.setattr("faops.autotune.cache.environment.driver", lambda vendor: "580.1")
    _stored(kernel=kernel.id, source_hash=kernel.source_hash(), default_kernel=kernel.id, driver="580.1")
    yield ""
    _stored(kernel=kernel.id, source_hash=kernel.source_hash(), default_kernel=kernel.id, driver="570.2")
    yield "1 tuning result from another driver, to be measured again"


@breaks("cache.unfinished")
def interrupted_run(machine: Machine) -> Iterator[str]:
    path = _stored()
    yield ""
    pending.Pending(path.parents[1] / pending.FILE_NAME, [PROBLEM]).save()
    journal = path.parents[1] / "journal" / "some.jsonl"
    journal.parent.mkdir()
    journal.write_text("{header}\n{timing}\n{timing}\n")
    yield "1 problem of an interrupted run left, with 2 timings kept"


@breaks("cache.misses")
def no_room_for_misses(machine: Machine) -> Iterator[str]:
    machine.patch.setattr(misses, "LIMIT", 3)
    directory = _stored().parents[1] / misses.DIRECTORY
    directory.mkdir()
    for name in "ab":
        (directory / f"{name}.json").write_text("{}")
    yield ""
    (directory / "c.json").write_text("{}")
    yield "3 problems ran untuned, and no further one is noted"


def _stored(**changes: Any) -> Path:
    """An entry of this machine's CPU, put where it belongs."""
    entry = make_entry(detect("cpu"), **changes)
    stored = TuningCache().put(entry, None)
    assert stored.path is not None and stored.path.name == file_name(PROBLEM.key())
    return stored.path


def _kernel() -> Kernel:
    found = registry.get("torch.sdpa_forward")
    assert found is not None
    return found


# --- settings and kernels ---------------------------------------------------------------------------------------------


@breaks("settings.values")
def unknown_setting(machine: Machine) -> Iterator[str]:
    path = machine.file("faops.yaml", "tuning: 1\n")
    machine.patch.setenv("FAOPS_CONFIG", str(path))
    yield ""
    path.write_text("tuning: 1\nbackemd: torch\n")
    os.utime(path, (1, 1))  # not the time of the file that was read before
    yield "unknown setting 'backemd'"


@breaks("settings.variables")
def misspelt_variable(machine: Machine) -> Iterator[str]:
    yield ""
    machine.patch.setenv("FAOPS_BACKEMD", "torch")
    yield "faops does not know FAOPS_BACKEMD"


@breaks("settings.backend")
def backend_that_is_not_there(machine: Machine) -> Iterator[str]:
    machine.patch.setenv("FAOPS_BACKEND", "torch")
    yield ""
    machine.patch.setenv("FAOPS_BACKEND", "cudnn")
    yield "backend 'cudnn' is forced"


@breaks("kernels.backends")
def package_that_does_not_load(machine: Machine) -> Iterator[str]:
    machine.package("acme-attention", "1.0")
    points = machine.site / "acme_attention-1.0.dist-info/entry_points.txt"
    points.write_text(f"[{registry.ENTRY_POINT_GROUP}]\nacme = acme_attention:register\n")
    yield ""
    for name, empty in (("_loaded", False), ("_kernels", {}), ("_failures", {})):
        machine.patch.setattr(registry, name, empty)
    yield "backends that cannot be loaded: acme"


def _wrong_kernel(kernel: Kernel, machine: Machine) -> Iterator[str]:
    """The kernel runs, where need be on an emulated device, and its result is off by a little."""
    machine.compilers()
    with able_to_run(kernel, machine.patch):
        yield ""
        usual = kernel.launch
        # A value near 1 of float16 has neighbours 0.001 away, and may be off by a few of them.
        factor = 1.02 if kernel.backend in ("cuda_raw", "npu") or kernel.name.startswith("ascend") else 1.001

        def launch(inputs: Any, config: Any) -> Any:
            first, *others = usual(inputs, config)
            return (first * factor, *others)

        machine.patch.setattr(kernel, "launch", launch)
        yield "wrong result"


for _each in registry.kernels():
    _breakage = functools.partial(_wrong_kernel, _each)
    functools.update_wrapper(_breakage, _wrong_kernel)
    breaks(f"kernels.{_each.id}")(_breakage)
