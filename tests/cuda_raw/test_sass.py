"""Reading machine code: what is counted, by width and inside loops."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from faops.backends.cuda_raw import nvrtc
from faops.backends.cuda_raw.gates import sass
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target
from faops.errors import UnavailableError
from tests.cuda_raw.sources import need_compiler

need_compiler()
if reason := sass.missing():
    pytest.skip(f"NOT TESTED, no machine code was read: {reason}", allow_module_level=True)

TARGETS = ("sm_75", "sm_80", "sm_90a", "sm_120")
LISTING = """\
.text.first:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0020*/              @!PT LDS RZ, [RZ] ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_0:
        /*0040*/                   LDG.E.U16 R4, [R2.64] ;
        /*0050*/              @UP1 BRA P2, `(.L_x_0) ;
.L_x_2:
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
.text.second:
        /*0000*/                   LDSM.16.MT88.4 R4, [R2] ;
        /*0010*/                   LDSM.16.M88 R4, [R2] ;
        /*0020*/                   STG.E.64 [R2.64], R4 ;
"""


def kernel(body: str) -> Source:
    text = f'extern "C" __global__ void work(float* x, const float4* y, int n) {{\n{body}\n}}\n'
    return Source("work", "work", (), text, threads=64)


def function(body: str, target: str) -> sass.Function:
    return sass.disassemble(nvrtc.compile(kernel(body), Target(target)).image)["work"]


def test_listing_is_cut_into_functions_and_loops() -> None:
    found = sass.parse(LISTING)
    first, second = found["first"], found["second"]
    assert [instruction.opcode for instruction in first.instructions] == [
        "MOV", "LDG.E.128.CONSTANT", "BRA", "LDG.E.U16", "BRA", "BRA", "EXIT", "BRA",
    ]  # fmt: skip
    assert first.loops == (sass.Loop(1, 5), sass.Loop(3, 4))
    assert first.widths("LDG") == Counter({16: 1, 2: 1})
    assert first.widths("LDG", first.loops[1]) == Counter({2: 1})
    assert first.count("LDS") == 0
    assert second.loops == ()
    assert second.widths("LDSM") == Counter({16: 1, 4: 1})
    assert second.widths("STG") == Counter({8: 1})
    assert second.opcodes() == Counter({"LDSM.16.MT88.4": 1, "LDSM.16.M88": 1, "STG.E.64": 1})


def test_loop_with_most() -> None:
    found = sass.parse(LISTING)["first"]
    assert found.loop_with("LDG") == sass.Loop(1, 5)
    assert found.loop_with("EXIT") is None


@pytest.mark.parametrize("target", TARGETS)
def test_loop_body_is_told_from_the_rest(target: str) -> None:
    body = """
    x[0] = __expf(x[1]);
    #pragma unroll 1
    for (int i = 0; i < n; ++i) { __syncthreads(); x[i] = __sinf(x[i]) + __cosf(x[i]); }
    """
    found = function(body, target)
    loop = found.loop_with("BAR")
    assert loop is not None
    assert found.count("MUFU", loop) == 2
    assert found.count("MUFU") == 3
    assert found.opcodes(loop)["MUFU.SIN"] == 1 and found.opcodes(loop)["MUFU.EX2"] == 0


@pytest.mark.parametrize("target", TARGETS)
def test_widths_of_accesses(target: str) -> None:
    found = function("float4 v = y[threadIdx.x]; x[threadIdx.x] = v.x * v.y + v.z * v.w;", target)
    assert found.widths("LDG") == Counter({16: 1})
    assert found.widths("STG") == Counter({4: 1})


@pytest.mark.parametrize("target", TARGETS)
def test_local_memory_shows(target: str) -> None:
    found = function("float a[32]; for (int i = 0; i < n; ++i) a[i & 31] = x[i]; x[0] = a[n & 31];", target)
    assert found.count("STL") > 0 and found.count("LDL") > 0


def test_wrong_file_is_an_error() -> None:
    with pytest.raises(UnavailableError, match=r"nvdisasm.* fails: "):
        sass.disassemble(b"no machine code")


def test_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "find", lambda: None)
    assert "pip install nvidia-cuda-nvdisasm" in sass.missing()
    with pytest.raises(UnavailableError, match="pip install nvidia-cuda-nvdisasm"):
        sass.disassemble(b"")


def test_tool_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(sass, "find", lambda: tmp_path / "nvdisasm")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UnavailableError, match="does not run"):
        sass.disassemble(b"")


def test_version() -> None:
    assert int(sass.version().partition(".")[0]) >= 11
