"""What keeps the kernels from running is a reason that `check` gives, found out without importing Triton."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton

from benchmarks import driver_stub
from faops.backends.triton import versions
from faops.device import DeviceProfile, detect, known
from tests.triton.test_launch import check_on_stub

ROOT = Path(__file__).parents[2]
OLDEST = ROOT / ".venv" / "triton-oldest"


def reasons(device: DeviceProfile) -> list[str]:
    return list(versions.missing(device))


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which Triton was imported without TRITON_INTERPRET and compiles."""
    monkeypatch.setitem(sys.modules, "triton.language", SimpleNamespace(sum=object()))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, compiling: None) -> DeviceProfile:
    """A card that is in this machine."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return known("h100")


def pretend(monkeypatch: pytest.MonkeyPatch, **packages: str) -> None:
    """Let packages have these versions; those that are not named are not installed."""

    def version(name: str) -> str:
        if (found := packages.get(name.replace("-", "_"))) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(versions, "_version", inspect.unwrap(versions._version))


def test_installed() -> None:
    assert versions.installed() == tuple(int(part) for part in triton.__version__.split("+")[0].split("."))


@pytest.mark.parametrize(
    ("text", "expected"), [("3.5.1", (3, 5, 1)), ("3.4.0+git1234abc", (3, 4, 0)), ("3.6.0.post2", (3, 6, 0))]
)
def test_version_texts(text: str, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, pytorch_triton=text)
    assert versions.installed() == expected


def test_no_triton(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert reasons(card) == ["Triton is not installed: pip install 'faops[triton]'"]


def test_old_triton(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, triton="3.2.0")
    (reason,) = reasons(card)
    assert "Triton 3.2.0 is too old, 3.3 or newer is needed" in reason
    pretend(monkeypatch, triton="3.3.0")
    assert reasons(card) == []


@pytest.mark.parametrize("value", ["0", "", "1", "true", "TRUE", "yes", "on", "y", "2", "no"])
def test_environment_is_read_as_triton_reads_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    expected = triton.knobs.runtime.interpret if hasattr(triton, "knobs") else value == "1"
    assert versions.interpreting() == expected


def test_old_triton_reads_1_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, triton="3.3.1")
    monkeypatch.setenv("TRITON_INTERPRET", "true")
    assert not versions.interpreting()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert versions.interpreting()


def test_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reasons(detect("cpu")) == []
    monkeypatch.delenv("TRITON_INTERPRET")
    assert reasons(detect("cpu")) == ["it runs on NVIDIA GPUs; TRITON_INTERPRET=1 runs it on a CPU, slowly"]


def test_interpreting_too_late(compiling: None) -> None:
    (reason,) = reasons(detect("cpu"))
    assert "TRITON_INTERPRET=1 came after Triton was imported" in reason


def test_interpreter_and_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, triton="3.6.0", numpy="2.4.1")
    (reason,) = reasons(detect("cpu"))
    assert "Triton 3.6.0 does not work with NumPy 2.4.1: pip install 'numpy<2.4'" in reason
    pretend(monkeypatch, triton="3.6.0", numpy="2.3.5")
    assert reasons(detect("cpu")) == []
    pretend(monkeypatch, triton="3.7.0", numpy="2.4.1")
    assert reasons(detect("cpu")) == []


@pytest.mark.parametrize("name", ["a100", "3090", "l4", "h100", "b200", "5090"])
def test_cards_elsewhere_can_be_planned_for(name: str) -> None:
    assert reasons(known(name)) == []


def test_old_cards() -> None:
    (reason,) = reasons(known("t4"))
    assert "no code for the tensor cores of sm_75" in reason
    (reason,) = reasons(replace(known("t4"), arch="sm_70"))
    assert "needs sm_80 or newer, not sm_70" in reason


def test_other_vendors() -> None:
    (reason,) = reasons(known("910b"))
    assert reason == "it runs on NVIDIA GPUs, not on Ascend 910B3"


def test_card_of_a_process_that_interprets(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reasons(card) == []
    monkeypatch.setattr(sys.modules["triton.language"], "sum", type("InterpretedFunction", (), {})())
    (reason,) = reasons(card)
    assert "Triton interprets its kernels in this process" in reason


def test_kernels_that_turned_out_broken(card: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_broken", {})
    versions.note_broken(card, "there is no C compiler")
    assert reasons(card) == ["there is no C compiler"]
    assert reasons(known("a100")) == []


def test_check_imports_no_triton() -> None:
    program = (
        "import sys, faops\n"
        "from faops import registry\n"
        "from faops.device import known\n"
        "from faops.problem import AttentionProblem\n"
        "for op in ('forward', 'backward', 'decode'):\n"
        "    kernel = registry.get(f'triton.{op}')\n"
        "    problem = AttentionProblem(op=op, seqlen_q=64, seqlen_k=64)\n"
        "    assert kernel.check(problem, known('h100')) and kernel.configs(problem, known('h100'))\n"
        "    kernel.check(problem, known('cpu'))\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


# ---------------------------------------------------------------------------------------------- the oldest Triton


@pytest.fixture
def oldest() -> str:
    """Python's path for the oldest Triton that faops takes."""
    if sys.platform != "linux" or sys.version_info >= (3, 14):
        pytest.skip("NOT TESTED, no kernel ran with the oldest Triton: there is none for this Python")
    assert (OLDEST / "triton").is_dir(), "the oldest Triton is missing: make .venv/.triton-oldest"
    return str(OLDEST)


def test_oldest_is_the_least(oldest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(oldest)
    monkeypatch.setattr(versions, "_version", inspect.unwrap(versions._version))
    found = versions.installed()
    assert found is not None and found[:2] == versions.LEAST[:2]


@pytest.mark.full
def test_oldest_launches_and_compiles(oldest: str, request: pytest.FixtureRequest) -> None:
    if reason := driver_stub.missing():
        pytest.skip(f"NOT TESTED, no kernel was launched with the oldest Triton: {reason}")
    everything = request.config.getoption("full")
    check_on_stub(oldest, chosen="" if everything else "not (bias or varlen or benchmark or spills)")


# Of both directions and of the KV cache; enough for every kernel and every argument that may be absent.
SAMPLE = "plain or mqa or varlen or softcap or bias or mask or sinks or dropout or append or rotary or paged or splits"


def test_oldest_interprets(oldest: str, request: pytest.FixtureRequest) -> None:
    """A sample of this folder's tests, forward, backward and decode."""
    everything = request.config.getoption("full")
    files = [f"tests/triton/test_{name}.py" for name in ("backward", "decode", "launch")]
    alone = "feature_alone" if everything else f"feature_alone and ({SAMPLE})"
    chosen = f"({alone}) or (test_launch and not stub)"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *files, "-k", chosen]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([oldest, str(ROOT)])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    passed = sum(line.count(".") for line in re.findall(r"^(\.+) +\[ *\d+%\]$", done.stdout, re.MULTILINE))
    assert passed > (40 if everything else 20), done.stdout[-2000:]
