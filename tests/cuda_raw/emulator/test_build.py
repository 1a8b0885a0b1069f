"""How kernels are built and kept, and that the two files of wrappers are in step."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faops.backends.cuda_raw.emulator import compiler, errors
from faops.backends.cuda_raw.emulator.counters import MATRIX_FLOPS
from faops.backends.cuda_raw.source import CSRC
from tests.cuda_raw.emulator.tiny import launch, source, words

build = importlib.import_module("faops.backends.cuda_raw.emulator.build")
WRAPPER = re.compile(
    r"^(?P<template>template <[^>]*>\n)?DEVICE (?P<result>[^(]*?)(?P<name>\w+)\((?P<taken>.*)\) \{", re.MULTILINE
)
PLACE = re.compile(r"(, )?EMULATOR_PLACE")


def wrappers(path: Path) -> list[tuple[str, ...]]:
    """Template, result, name and parameters of every function, in the order of the file."""
    text = path.read_text()
    return [tuple(PLACE.sub("", part or "") for part in found.groups()) for found in WRAPPER.finditer(text)]


def test_the_wrappers_are_those_of_the_gpu() -> None:
    device, host = wrappers(CSRC / "ptx.cuh"), wrappers(build.CSRC / "ptx.cuh")
    assert len(device) == (CSRC / "ptx.cuh").read_text().count("\nDEVICE ") > 30
    assert sorted(host) == sorted(device)


def test_types_and_macros_are_those_of_the_gpu() -> None:
    device = (CSRC / "ptx.cuh").read_text()
    host = (build.CSRC / "ptx.cuh").read_text() + (build.CSRC / "runtime.h").read_text()
    for pattern in (r"^using .*;$", r"^struct alignas.*\{\n.*\n\};$"):
        found = re.findall(pattern, device, re.MULTILINE)
        assert found and all(line in host for line in found)
    macros = re.findall(r"^#define (\w+)", device, re.MULTILINE)
    assert macros and set(macros) <= set(re.findall(r"^#define (\w+)", host, re.MULTILINE))


def test_failures_have_the_same_numbers_on_both_sides() -> None:
    text = (build.CSRC / "machine.h").read_text()
    names = re.search(r"enum Failure \{\n(.*?)\n\};", text, re.DOTALL)
    assert names
    numbered = [name.strip(" ,").replace("_", "").lower() for name in names[1].splitlines()]
    expected = {number: fault.__name__.removesuffix("Error").lower() for number, fault in errors.FAULTS.items()}
    assert dict(enumerate(numbered)) == {0: "none", **expected}


def test_matrix_kinds_have_flops() -> None:
    assert re.findall(r'"(m\d+n\d+k\d+_\w+)"', (build.CSRC / "counters.h").read_text()) == list(MATRIX_FLOPS)
    for name, flops in MATRIX_FLOPS.items():
        m, n, k = map(int, re.findall(r"\d+", name)[:3])
        assert flops == 2 * m * n * k


@pytest.fixture
def empty_folder(tmp_path: Path, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without kernels; the runtime's object still comes from the one that is kept."""
    launch(source(""), words(1))
    folder = tmp_path / "kernels"
    folder.mkdir()
    for runtime in kernel_folder.glob("*.o"):
        shutil.copy(runtime, folder)  # and not its age, by which old kernels make room
    monkeypatch.setattr(build, "directory", lambda: folder)
    return folder


def test_a_kernel_is_compiled_once(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, calls = source("store_global(params.out + t, 3u);"), []
    real = build._compile_kernel
    monkeypatch.setattr(build, "_compile_kernel", lambda *arguments: (calls.append(1), real(*arguments)))
    with ThreadPoolExecutor(4) as pool:
        files = set(pool.map(lambda _: build.build(kernel, "sm_80"), range(4)))
    assert len(files) == len(calls) == 1
    assert build.build(kernel, "sm_75") not in files and len(calls) == 2
    assert not list(empty_folder.glob(".making*"))


def test_many_kernels_at_once(empty_folder: Path) -> None:
    kernels = [source(f"store_global(params.out + t, {number}u);") for number in (1, 2)]
    files = build.build_many([*kernels, kernels[0]], "sm_80")
    assert files[0] == files[2] != files[1] and all(file.exists() for file in files)
    for number, kernel in enumerate(kernels, 1):
        launch(kernel, out := words(32))
        assert (out == number).all()


def test_old_kernels_make_room(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = os.stat(build.build(source("// now"), "sm_80")).st_mtime
    for name, age, size in (("oldest", 4000, 600), ("old", 3000, 600), ("recent", 10, 600)):
        (empty_folder / name).write_bytes(bytes(size))
        os.utime(empty_folder / name, (now - age, now - age))
    total = sum(file.stat().st_size for file in empty_folder.iterdir() if file.is_file())
    monkeypatch.setattr(build, "LIMIT_BYTES", total - 600)
    build._prune(empty_folder)
    assert {"old", "recent"} == {file.name for file in empty_folder.iterdir()} & {"oldest", "old", "recent"}
    monkeypatch.setattr(build, "LIMIT_BYTES", 0)
    build._prune(empty_folder)
    assert {"recent"} == {file.name for file in empty_folder.iterdir()} & {"oldest", "old", "recent"}


def test_what_does_not_compile_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(errors.EmulatorError, match=r"does not compile tiny for the emulator(.|\n)*no_such_function"):
        launch(source("no_such_function();"), words(1))


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "directory", lambda: tmp_path / "file" / "kernels")
    with pytest.raises(errors.EmulatorError, match=r"cannot be kept in .*/file/kernels"):
        build.build(source(""), "sm_80")


def test_the_compiler_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert "CXX is 'no-such-compiler -O2', which is no program here" in str(compiler.missing())
    with pytest.raises(errors.EmulatorError, match="no-such-compiler"):
        launch(source(""), words(1))
    monkeypatch.delenv("CXX")
    assert compiler.missing() is None
    monkeypatch.setenv("PATH", "")
    compiler._find.cache_clear()
    assert "neither g++ nor clang++ is on the PATH" in str(compiler.missing())
    compiler._find.cache_clear()


def test_blocks_on_several_host_threads() -> None:
    kernel = source("store_global(params.out + 32 * block_index() + t, block_index() + shuffle_xor(u32(t), 1));")
    one, many = words(32 * 64), words(32 * 64)
    launch(kernel, one, grid=64)
    launch(kernel, many, grid=64, host_threads=3)
    assert one.equal(many) and one[-1] == 63 + 30
    with pytest.raises(errors.OutOfBoundsError, match="block 63, thread"):
        launch(kernel, words(32 * 63), grid=64, host_threads=3)
