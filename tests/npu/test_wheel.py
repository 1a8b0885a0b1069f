"""The comparison of recorded schemas with a wheel of torch-npu, on wheels made up here.

`make check-torch-npu` runs it on the newest wheel there is.
"""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.npu import double, wheel

VERSION = "2.13.0"


def make_wheel(folder: Path, schemas: dict[str, str], version: str = VERSION) -> Path:
    """A wheel whose library holds these schemas among other bytes, as a linker leaves them."""
    path = folder / f"torch_npu-{version}-cp311-cp311-manylinux_2_28_x86_64.whl"
    strings = [*schemas.values(), "npu_prompt_flash_attention.out(Tensor query, *, Tensor(a!) out) -> Tensor(a!)"]
    strings += ["npu_format_cast(Tensor self, int acl_format) -> Tensor", "npu_rotary_mul: wrong shape (Tensor)"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch_npu/lib/libtorch_npu.so", b"\x7fELF\x00" + b"\x00".join(s.encode() for s in strings))
    return path


@pytest.mark.parametrize("version", double.VERSIONS)
def test_a_wheel_as_recorded_passes(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.main([str(make_wheel(tmp_path, double.recorded(version), version))]) == 0
    count = len(double.OPERATORS)
    assert capsys.readouterr().out.split("\n")[0].endswith(f"{count} of {count} operators the same (as recorded)")


def changed() -> dict[str, str]:
    """The record with one operator of another spelling, one that is gone, and all others."""
    schemas = double.recorded(VERSION)
    schemas["npu_rotary_mul"] = schemas["npu_rotary_mul"].replace("rotary_mode", "mode")
    del schemas["npu_attention_update"]
    return schemas


def test_differences_of_a_recorded_version_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.main([str(make_wheel(tmp_path, changed()))]) == 1
    told = capsys.readouterr().out
    assert f"{len(double.OPERATORS) - 2} of" in told
    assert "changed  npu_rotary_mul" in told and "str mode='half'" in told and "str rotary_mode='half'" in told
    assert "missing  npu_attention_update" in told


def test_differences_of_another_version_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheel.main([str(make_wheel(tmp_path, changed(), "2.99.0"))]) == 0
    told = capsys.readouterr().out
    assert f"not recorded; against {double.VERSIONS[-1]}" in told and "changed  npu_rotary_mul" in told


def test_an_operator_that_a_version_lacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schemas = double.recorded("2.6.0")
    schemas["npu_fusion_attention_v3"] = double.recorded(VERSION)["npu_fusion_attention_v3"]
    assert wheel.main([str(make_wheel(tmp_path, schemas, "2.6.0.post5"))]) == 1
    assert "new      npu_fusion_attention_v3" in capsys.readouterr().out


def test_every_wheel_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = make_wheel(tmp_path, changed()), make_wheel(tmp_path, double.recorded("2.14.0"), "2.14.0")
    assert wheel.main([str(bad), str(good)]) == 1
    assert "torch_npu 2.14.0" in capsys.readouterr().out


def test_what_is_no_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, empty = tmp_path / "torch_npu-1.0-a-b-c.whl", tmp_path / "torch_npu-1.1-a-b-c.whl"
    text.write_text("not a zip")
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("torch_npu/__init__.py", "")
    for path, words in ((text, "not a zip"), (empty, "no libtorch_npu.so"), (tmp_path / "torch.whl", "not a wheel")):
        assert wheel.main([str(path)]) == 1
        assert words in capsys.readouterr().err


def test_download_asks_for_one_wheel_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        make_wheel(Path(command[command.index("--dest") + 1]), double.recorded("2.6.0"), "2.6.0.post5")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert wheel.main(["--version", "2.6.0"]) == 0
    assert wheel.main([]) == 0
    assert [command[-1] for command in commands] == ["torch-npu==2.6.0.post5", "torch-npu"]
    assert all("--no-deps" in command for command in commands)


def test_download_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no matching distribution")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    assert wheel.main([]) == 1
    assert "no matching distribution" in capsys.readouterr().err
