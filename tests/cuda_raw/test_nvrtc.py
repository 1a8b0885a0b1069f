"""NVRTC makes code for every architecture, says what it costs, and explains what is wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from faops.backends.cuda_raw import nvrtc, targets
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target
from faops.errors import CompileError
from tests.cuda_raw.sources import HEADER, MAIN, need_compiler, small

need_compiler()

EM_CUDA = 190
SM_80 = Target("sm_80")


@pytest.mark.parametrize("arch", targets.ARCHS)
def test_every_architecture(arch: str) -> None:
    target = nvrtc.target_of(arch)
    compiled = nvrtc.compile(small(), target)
    assert (compiled.kind, compiled.target, compiled.from_cache) == ("cubin", target, False)
    assert compiled.image[:4] == b"\x7fELF"
    assert int.from_bytes(compiled.image[18:20], "little") == EM_CUDA
    assert b"scale_all" in compiled.image
    assert compiled.registers is not None
    assert 4 <= compiled.registers <= 40
    assert compiled.static_shared_bytes == 256
    assert (compiled.spill_store_bytes, compiled.spill_load_bytes, compiled.stack_bytes) == (0, 0, 0)
    assert 0 < compiled.seconds < 60


@pytest.mark.parametrize("name", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_the_elf_file_is_whole(name: str) -> None:
    """Neither its tables nor its sections reach beyond the end, and nothing follows them."""
    image = nvrtc.compile(small(), Target(name)).image

    def number(at: int, size: int) -> int:
        return int.from_bytes(image[at : at + size], "little")

    sections, section_size, section_count = number(40, 8), number(58, 2), number(60, 2)
    tables = [number(32, 8) + number(54, 2) * number(56, 2), sections + section_size * section_count]
    ends = [0]
    for at in range(sections, sections + section_size * section_count, section_size):
        takes_no_room = number(at + 4, 4) == 8
        ends.append(0 if takes_no_room else number(at + 24, 8) + number(at + 32, 8))
    assert max(*tables, *ends) == len(image)


def test_a_newer_architecture_gets_ptx() -> None:
    target = nvrtc.target_of("sm_990")
    assert target.name == f"compute_{max(nvrtc.supported())}"
    compiled = nvrtc.compile(small(), target)
    assert compiled.kind == "ptx"
    assert b".visible .entry scale_all" in compiled.image
    assert f".target sm_{max(nvrtc.supported())}\n".encode() in compiled.image
    assert (compiled.registers, compiled.spill_store_bytes, compiled.static_shared_bytes) == (None, None, None)


def test_the_same_source_gives_the_same_code() -> None:
    assert nvrtc.compile(small(), SM_80).image == nvrtc.compile(small(), SM_80).image
    assert nvrtc.compile(small(3), SM_80).image != nvrtc.compile(small(4), SM_80).image


def test_spills_are_seen() -> None:
    """96 values that live across a barrier do not fit into the 32 registers that 2048 threads leave each."""
    text = """\
extern "C" __global__ void __launch_bounds__(1024, 2) crowded(float* values) {
    float kept[96];
    #pragma unroll
    for (int i = 0; i < 96; i++) kept[i] = values[threadIdx.x * 96 + i];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 96; i++) values[threadIdx.x + 1024 * i] = kept[95 - i] * kept[(i * 7) % 96];
}
"""
    compiled = nvrtc.compile(Source("crowded", "crowded", (), text, 1024), SM_80)
    assert compiled.registers == 32
    assert compiled.spill_store_bytes
    assert compiled.spill_load_bytes
    assert compiled.stack_bytes
    assert min(compiled.spill_store_bytes, compiled.spill_load_bytes, compiled.stack_bytes) > 100


def test_figures_are_of_the_entry_and_spills_of_all() -> None:
    """The form of several versions; the figures differ per function, so that a mix-up shows."""
    log = (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'other' for 'sm_80'\n"
        "ptxas info    : Function properties for other\n"
        "    8 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads\n"
        "ptxas info    : Used 99 registers, 77 bytes smem, 400 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function 'main' for 'sm_80'\n"
        "ptxas info    : Function properties for main\n"
        "ptxas         .     16 bytes stack frame, 10 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 42 registers, used 1 barriers, 360 bytes cmem[0], 8 bytes cmem[2]\n"
        "ptxas info    : Function properties for helper\n"
        "ptxas         .     0 bytes stack frame, 100 bytes spill stores, 200 bytes spill loads\n"
    )
    assert nvrtc._figures(log, "main") == {
        "registers": 42,
        "spill_store_bytes": 111,
        "spill_load_bytes": 222,
        "stack_bytes": 16,
        "static_shared_bytes": 0,
        "constant_bytes": 368,
    }
    assert set(nvrtc._figures("", "main").values()) == {None}


def test_an_error_in_the_main_file_is_shown_with_its_lines() -> None:
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(small(text=MAIN.replace("kept[63", "lost[63")), SM_80)
    message = str(caught.value)
    assert message.startswith(f"scale does not compile for sm_80 (NVRTC {nvrtc.version_text()}), 1 error\n")
    assert 'scale.cu(8): error: identifier "lost" is undefined' in message
    assert ">    8 |     values[threadIdx.x] = scaled(lost[63 - threadIdx.x]);" in message
    assert "     5 |     __shared__ float kept[64];" in message
    assert " 4 |" not in message


def test_an_error_in_a_header_is_shown_with_the_lines_of_the_header() -> None:
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(small(header=HEADER.replace("FACTOR", "UNKNOWN")), SM_80)
    message, source = str(caught.value), caught.value.source
    assert 'scale.cuh(3): error: identifier "UNKNOWN" is undefined' in message
    assert ">    3 |     return value * UNKNOWN;" in message
    for part in ("---- scale.cu\n", "---- scale.cuh\n", "---- specialization.cuh\n", "     9 | }"):
        assert part in source
    assert "1 error detected" in caught.value.log


def test_many_errors_are_counted_and_the_first_shown() -> None:
    wrong = "".join(f"__device__ int f{i}() {{ return wrong{i}; }}\n" for i in range(7))
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(small(text=MAIN + wrong), SM_80)
    message = str(caught.value)
    assert "7 errors" in message
    assert 'identifier "wrong2"' in message
    assert 'identifier "wrong3"' not in message
    assert message.endswith("and 4 more")


def test_an_error_that_a_template_repeats_is_shown_once() -> None:
    wrong = "template <int N> __device__ int checked() { static_assert(N < 0); return N; }\n"
    wrong += "__device__ int use() { return checked<1>() + checked<2>() + checked<3>(); }\n"
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(small(text=MAIN + wrong), SM_80)
    assert caught.value.log.count("static assertion failed") == 3
    assert str(caught.value).count("static assertion failed") == 1
    assert ", 1 error\n" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("kept[64]", "kept[64000]"), "uses too much shared data"),
        (("__syncthreads();", 'asm("nonsense.u32;");'), "nonsense"),
    ],
)
def test_errors_of_the_assembler(change: tuple[str, str], words: str) -> None:
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(small(text=MAIN.replace(*change)), SM_80)
    assert words in str(caught.value)
    assert "info" not in str(caught.value)
    assert "\0" not in caught.value.log


def test_an_unknown_target_is_an_error_that_says_so() -> None:
    with pytest.raises(CompileError, match="invalid value for --gpu-architecture"):
        nvrtc.compile(small(), Target("sm_999"))


def test_headers_of_the_working_directory_are_not_taken(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "scale.cuh").write_text("#error taken from the working directory\n")
    monkeypatch.chdir(place)
    assert nvrtc.compile(small(), SM_80).image


def test_programs_are_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, destroyed = [], []
    real = nvrtc._binding()

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def createProgram(self, *arguments: object) -> object:  # noqa: N802
            made.append(real.createProgram(*arguments))
            return made[-1]

        def destroyProgram(self, program: object) -> None:  # noqa: N802
            destroyed.append(program)
            real.destroyProgram(program)

    monkeypatch.setattr(nvrtc, "_binding", Counting)
    nvrtc.compile(small(), SM_80)
    with pytest.raises(CompileError):
        nvrtc.compile(small(text="wrong"), SM_80)
    assert len(made) == 2
    assert made == destroyed


def test_looking_whether_cupy_is_installed_imports_nothing() -> None:
    program = (
        "import sys; from faops.backends.cuda_raw import nvrtc; assert nvrtc.installed() == ''; "
        "assert not {'cupy', 'cupy_backends'} & set(sys.modules); "
        "assert nvrtc.probe() == ''; assert 'cupy_backends' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for reason in (nvrtc.installed(), nvrtc.probe()):
        assert reason.startswith("CuPy is not installed")
        assert "faops[cuda12]" in reason
        assert "faops[cuda13]" in reason


def test_cupy_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(nvrtc, "_binding", broken)
    assert nvrtc.installed() == ""
    assert "NVRTC cannot be loaded (RuntimeError: libnvrtc.so.13" in nvrtc.probe()


def test_library_path() -> None:
    nvrtc.version()
    assert "libnvrtc.so" in nvrtc.library_path()
