"""The command line where `import torch` fails because of a package that PyTorch imports by itself, such as torch_npu.

Such a package is really installed here, as far as Python can tell: in a folder on the path, with its entry point.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from faops_cli import autoload
from faops_cli.main import COMMANDS

from tests.cli.conftest import Faops
from tests.cli.support import python

MISSING = "libhccl.so: cannot open shared object file: No such file or directory"


def install(folder: Path, code: str = f"raise ImportError({MISSING!r})", name: str = "torch_npu") -> str:
    """Install a package that PyTorch imports by itself; the folder to put on PYTHONPATH."""
    (folder / f"{name}.py").write_text(f"{code}\ndef load(): pass\n")
    metadata = folder / f"{name}-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text(f"[torch.backends]\n{name} = {name}:load\n")
    return str(folder)


def fake_torch(folder: Path, code: str) -> None:
    """A module called torch, for processes that are to import it in no time; it knows the switch."""
    (folder / "torch.py").write_text(f"import os\nif os.environ.get('{autoload.SWITCH}', '1') == '1':\n    {code}\n")


def test_a_command_says_what_happened_and_how_to_go_on(tmp_path: Path) -> None:
    done = python("-m", "faops_cli", "kernels", PYTHONPATH=install(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: PyTorch cannot be imported: it loads torch_npu by itself, and that fails: ImportError: {MISSING}\n"
        "fix: faops doctor (finds what is wrong), or do without torch_npu: TORCH_DEVICE_BACKEND_AUTOLOAD=0 faops ...\n"
    )


def test_the_way_to_go_on_is_one(tmp_path: Path) -> None:
    done = python("-m", "faops_cli", "version", PYTHONPATH=install(tmp_path), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch-npu" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("doctor", "version", "completion")])
def test_no_command_gives_a_traceback(name: str, tmp_path: Path) -> None:
    arguments = {
        "cache": ["list"],
        "explain": ["--shape", "sq=8,h=1,d=8"],
        "tune": ["--dry-run", "--shape", "sq=8,h=1,d=8"],
    }
    done = python("-m", "faops_cli", name, *arguments.get(name, []), PYTHONPATH=install(tmp_path))
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0 faops" in done.stderr or "Usage" in done.stderr


@pytest.mark.full
def test_doctor_runs_and_names_the_failure(tmp_path: Path) -> None:
    done = python("-m", "faops_cli", "doctor", "npu", "torch.version", "--json", PYTHONPATH=install(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    found = {row["id"]: row for row in json.loads(done.stdout)["findings"]}
    assert found["torch.version"]["status"] == "ok"
    for name in ("npu.autoload", "npu.import"):
        assert found[name]["status"] == "fail"
        assert MISSING in found[name]["summary"]
        assert found[name]["fix"].startswith("source ")
    assert found["npu.cann"]["status"] == "fail"
    assert found["npu.devices"]["summary"] == "not tried: see npu.import"


@pytest.mark.parametrize(
    ("code", "spared"),
    [
        ("pass", False),
        ("raise RuntimeError('no')", True),
        ("os.kill(os.getpid(), 11)", True),
        ("import time; time.sleep(30)", True),
    ],
    ids=["works", "raises", "crashes", "hangs"],
)
def test_doctor_spares_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, spared: bool
) -> None:
    folder = install(tmp_path)
    fake_torch(tmp_path, code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setenv(autoload.SWITCH, "1")
    monkeypatch.setattr(autoload, "LIMIT_SECONDS", 1.0 if "sleep" in code else 30.0)
    autoload.spare_this_process()
    assert os.environ[autoload.SWITCH] == ("0" if spared else "1")


@pytest.mark.parametrize("switch", ["0", "1"])
def test_nothing_is_tried_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    """Where loading is off already, or where no package asks for it."""
    if switch == "0":
        monkeypatch.syspath_prepend(install(tmp_path))
    else:
        monkeypatch.setattr(autoload.metadata, "entry_points", lambda group: ())
    monkeypatch.setenv(autoload.SWITCH, switch)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    autoload.spare_this_process()
    assert os.environ[autoload.SWITCH] == switch


def test_doctor_in_this_process_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faops: Faops) -> None:
    """As in a real run, but for the torch of the child processes, which is not worth its seconds here."""
    folder = install(tmp_path)
    fake_torch(tmp_path, f"raise ImportError({MISSING!r})")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setenv(autoload.SWITCH, "1")
    result = faops("doctor", "npu.autoload")
    assert result.exit_code == 1
    assert os.environ[autoload.SWITCH] == "0"
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert f"x   npu.autoload: `import torch` fails: ImportError: {MISSING}" in lines
    assert "fix: source /usr/local/Ascend/ascend-toolkit/set_env.sh" in lines


@pytest.mark.parametrize(
    "error", [RuntimeError("something else"), ImportError("Failed to load the backend extension: x")]
)
def test_other_errors_are_none_of_its_business(error: Exception) -> None:
    assert autoload.explained(error) == ""


def test_the_message_is_that_of_pytorch() -> None:
    """Read from its source, as it is the way to tell this failure from others."""
    import torch

    source = Path(torch.__file__).read_text(encoding="utf-8")
    assert f'"{autoload.FAILED}{{' in source and autoload.SWITCH in source and f'"{autoload.GROUP}"' in source
