"""What keeps the Ascend kernel from running is a reason that `check` gives, found out without importing Triton."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from faops import registry
from faops.backends.triton.ascend import versions
from faops.device import known
from faops.problem import AttentionProblem
from faops.registry import Rejected
from tests.triton.ascend.support import BACKEND, NPU

ROOT = Path(__file__).parents[3]
OLDEST = ROOT / ".venv" / "triton-oldest"
KERNEL = registry.get(BACKEND)


def reasons(device: Any = NPU, **changes: Any) -> tuple[str, ...]:
    problem = AttentionProblem(**{"seqlen_q": 64, "seqlen_k": 64, "heads_q": 2, "heads_kv": 2, **changes})
    assert KERNEL is not None
    decision = KERNEL.check(problem, device)
    return decision.reasons if isinstance(decision, Rejected) else ()


def test_accepts() -> None:
    for device in (NPU, known("910c")):
        for dtype in ("float16", "bfloat16", "float32"):
            assert reasons(device, dtype=dtype) == ()
    assert reasons(softcap=True, alibi=True, bias="bhmn", mask="b..n", sinks=True, layout="varlen", need_lse=True) == ()


def test_refuses_with_every_reason() -> None:
    assert reasons(dropout=True) == ("it has no dropout",)
    assert reasons(dtype="float64", head_dim=257, dropout=True) == (
        "it computes in float16, bfloat16 and float32, not in float64",
        "head_dim 257 is more than 256",
        "it has no dropout",
    )
    assert reasons(fp8_descale=True) == ("it takes no fp8 descales",)


def test_other_devices() -> None:
    assert reasons(known("h100")) == (f"it runs on Ascend NPUs, not on {known('h100').name}",)
    assert len(reasons(known("cpu"))) == 1
    for arch in ("310P", "950", "ascend-unknown"):
        (reason,) = reasons(replace(NPU, arch=arch))
        assert reason == f"triton-ascend is known to compile for 910B and 910C, not for {arch}"


# ---------------------------------------------------------------------------------------------- on an NPU's machine


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an NPU and with triton-ascend, in the folder that is returned."""
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_available=lambda: True), raising=False)
    monkeypatch.setitem(sys.modules, "triton.language", SimpleNamespace(sum=object()))  # compiles
    (tmp_path / "triton" / "backends" / "ascend").mkdir(parents=True)
    install(monkeypatch, tmp_path, {"triton-ascend": "3.2.0"})
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, packages: dict[str, str]) -> None:
    """Let these packages be all that is installed, in ``folder``, and `import triton` read from there."""

    def distribution(name: str) -> Any:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=packages[name], locate_file=lambda path: folder / path)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: distribution(name).version)
    spec = importlib.machinery.ModuleSpec("triton", None, origin=str(folder / "triton" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_triton_ascend_is_there(here: Path) -> None:
    assert reasons() == ()


def test_not_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, here, {})
    assert reasons() == (f"triton-ascend is not installed: {versions.INSTALL}",)


def test_too_old(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, here, {"triton-ascend": "3.1.0rc2"})
    (reason,) = reasons()
    assert reason.startswith("triton-ascend 3.1.0 is too old, 3.2 or newer is needed")


def test_another_triton_is_imported(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path / "elsewhere", {"triton-ascend": "3.2.0"})
    (reason,) = reasons()
    assert reason.startswith("`import triton` gives another package than that of triton-ascend")


def test_triton_was_installed_over_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, here, {"triton-ascend": "3.2.0", "triton": "3.9.0"})
    (reason,) = reasons()
    assert reason.startswith("triton is installed in the place of triton-ascend")


def test_interpreting(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "triton.language")
    (reason,) = reasons()
    assert "TRITON_INTERPRET=1" in reason


def test_without_an_npu_nothing_has_to_be_installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, here, {})
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_available=lambda: False))
    assert not [reason for reason in reasons() if "ascend" in reason]


def test_this_environment_has_another_triton() -> None:
    """What was read above is what importlib really says."""
    assert any("triton-ascend is not installed" in reason for reason in versions.absent())
    folder = versions._imported()
    assert folder is not None and folder == versions._folder_of("triton") and folder.name == "triton"


@pytest.mark.full
def test_planning_imports_no_triton() -> None:
    program = (
        "import sys\n"
        "from faops import registry\n"
        "from faops.device import known\n"
        "from faops.problem import AttentionProblem\n"
        f"kernel = registry.get('{BACKEND}')\n"
        "problem = AttentionProblem(seqlen_q=64, seqlen_k=64)\n"
        "for device in (known('910b'), known('cpu')):\n"
        "    kernel.check(problem, device)\n"
        "assert kernel.configs(problem, known('910b'))\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.full
def test_oldest_interprets() -> None:
    """A sample of this folder's tests, with the oldest Triton that faops takes."""
    if not (OLDEST / "triton").is_dir():
        pytest.skip("NOT TESTED, the Ascend kernel did not run with the oldest Triton: make .venv/.triton-oldest")
    file = "tests/triton/ascend/test_forward.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(OLDEST), str(ROOT)])
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
