"""The programs that are recorded: problems through the dispatcher, and scripts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from faops.autotune.cache import misses
from faops.errors import ArgumentError, NoKernelError, UnavailableError
from faops.problem import AttentionProblem, parse_shape
from faops.profile import TraceError, programs
from faops.profile.programs import ScriptError
from tests.profile.support import CPU, shown

TINY = "sq=33,h=2,d=16,dtype=float32"


@pytest.mark.parametrize(
    ("shape", "backend", "kernel"),
    [
        (f"{TINY},causal=1", "", "torch.sdpa_forward"),
        (f"{TINY},op=backward", "", "torch.sdpa_backward"),
        (f"{TINY},softcap=1", "", "torch.blockwise_forward"),
        (f"{TINY},op=backward", "torch.blockwise", "torch.blockwise_backward"),
        ("sq=1,sk=65,h=2,d=16,dtype=float32,op=decode", "", "torch.sdpa_decode"),
        ("sq=1,sk=64,h=2,d=16,dtype=float32,op=decode,page_size=16,layout=paged,append=1", "", "torch.sdpa_decode"),
        (f"{TINY},layout=varlen,b=2", "torch.blockwise", "torch.blockwise_forward"),
    ],
)
def test_a_problem_runs_by_the_kernel_of_a_call(shape: str, backend: str, kernel: str, tmp_path: Path) -> None:
    program = programs.of_problem(parse_shape(shape), CPU, backend)
    report = shown(program, tmp_path)
    assert report.passed()
    assert all(kernel in (row.name, *row.label.split()) for row in report.rows), report.rows
    assert sum(row.calls for row in report.rows) >= 2


def test_a_problem_is_no_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misses, "record", lambda *arguments: pytest.fail("recorded"))
    programs.of_problem(parse_shape(TINY), CPU)()


def test_what_cannot_run_is_refused_before() -> None:
    with pytest.raises(ArgumentError, match="backend"):
        programs.of_problem(parse_shape(TINY), CPU, "nothing")
    with pytest.raises(NoKernelError):
        programs.of_problem(parse_shape(f"{TINY},softcap=1,window=4:0"), CPU, "torch.sdpa_forward")


def test_another_kernel_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs.of_problem(AttentionProblem(dtype="float32", seqlen_q=9, seqlen_k=9), CPU)
    run, failures = programs.execute.run, []

    def failing(*arguments: object) -> object:
        if not failures:
            failures.append(1)
            raise UnavailableError("not here")
        return run(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(programs.execute, "run", failing)
    assert program() is not None and failures


# --- scripts ----------------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


def test_a_script_runs_as_python_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "neighbour.py").write_text("word = 'hello'")
    path = script(tmp_path, "import sys, neighbour\nif __name__ == '__main__':\n    print(neighbour.word, sys.argv)")
    before = sys.argv, list(sys.path), sys.modules["__main__"]
    programs.of_script(path, ["--steps", "3"])()
    assert capsys.readouterr().out == f"hello ['{path}', '--steps', '3']\n"
    assert (sys.argv, sys.path, sys.modules["__main__"]) == before
    sys.modules.pop("neighbour")


def test_threads_of_a_script_are_recorded(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import threading, torch\n"
        "def run(): torch.nn.functional.scaled_dot_product_attention(*(torch.randn(1, 2, 9, 8) for _ in range(3)))\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()\n",
    )
    report = shown(programs.of_script(path, []), tmp_path, steps=1)
    assert report.verdict in ("fused", "no attention")  # older releases of PyTorch see their own thread only


@pytest.mark.parametrize("end", ["", "import sys; sys.exit()", "import sys; sys.exit(0)", "raise SystemExit"])
def test_a_script_may_end_well(end: str, tmp_path: Path) -> None:
    programs.of_script(script(tmp_path, end), [])()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\nsys.exit(4)", "ended with exit code 4"),
        ("import sys\nsys.exit('no data')", "ended with exit code no data"),
        ("x = 1\nraise ValueError('two\\nlines')", ":2: ValueError: two lines"),
        ("def f():\n    1 / 0\n\nf()", ":2: ZeroDivisionError"),
        ("x = 1\n  y = 2", ":2: IndentationError"),
        ("import no_such_module", ":1: ModuleNotFoundError"),
        ("raise RuntimeError", "RuntimeError: no message"),
    ],
)
def test_a_script_that_fails_is_named(text: str, words: str, tmp_path: Path) -> None:
    path, before = script(tmp_path, text), (sys.argv, list(sys.path))
    with pytest.raises(ScriptError) as caught:
        programs.of_script(path, ["x"])()
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)
    assert (sys.argv, sys.path) == before


def test_a_script_that_does_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(TraceError, match="no such script"):
            programs.of_script(path, [])
