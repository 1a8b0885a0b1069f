"""Who else is on an NPU, as a made-up npu-smi tells."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from faops.autotune import tuner
from faops.autotune.measurement import npu_smi
from faops.device import known
from faops.npu_smi import VISIBLE

# One card with two chips; the third row of each card is no processor. Spaces as the tool writes them.
MAPPING = """\
\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name
\t2                              0                              0                              Ascend 910B3
\t2                              1                              -                              Mcu
\t5                              0                              1                              Ascend 910B3
"""
TABLE = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.0.rc1                 Version: 25.0.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 2     910B3               | OK            | 91.2        45                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3362 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 2       0                 | 4711          | python3                  | 512                     |
| 2       0                 | {own}         | python3                  | 100                     |
| 2       0                 | 4712          |                          | 47881                   |
+===========================+===============+====================================================+
| No running processes found in NPU 5                                                            |
+===========================+===============+====================================================+
"""
IN_CONTAINER = """\
| NPU     Chip       | Process id    | Process name| Process memory(MB) |Process id in container|
+===========================+===============+===================================================+
| 2       0          | 990011        | python3     | 100                | {own}                 |
| 2       0          | 990012        | python3     | 200                | 8                     |
"""
BY_CARD = """\
| NPU ID | Process id | Process name  | Process memory(MB) |
| 2      | 1648703    | VLLMWorker    | 316                |
"""
FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)  # the type does not matter here


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, table: str, mapping: str = MAPPING, code: int = 0) -> None:
    """An npu-smi on the path that prints these, and nothing else on it but a shell's tools."""
    monkeypatch.delenv(VISIBLE, raising=False)
    (folder / "table").write_text(table.format(own=os.getpid()))
    (folder / "mapping").write_text(mapping)
    program = folder / "npu-smi"
    printing = f'[ "$2" = -m ] && cat {folder}/mapping || cat {folder}/table'
    program.write_text(f'#!/bin/sh\n[ "$1" = info ] || exit 9\n{printing}\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_the_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, TABLE)
    assert npu_smi.others(FIRST) == ["4711 python3 (512 MB)", "4712 unnamed (47881 MB)"]
    assert npu_smi.others(torch.device("cpu")) == npu_smi.others(FIRST)
    assert npu_smi.others(SECOND) == []
    assert npu_smi.others(torch.device("cpu", 2)) == []


def test_torch_counts_the_visible_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, TABLE)
    monkeypatch.setenv(VISIBLE, "1, 0")
    assert npu_smi.others(FIRST) == []
    assert len(npu_smi.others(SECOND)) == 2
    monkeypatch.setenv(VISIBLE, "1")
    assert npu_smi.others(SECOND) == []


def test_in_a_container_this_process_has_two_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, IN_CONTAINER)
    assert npu_smi.others(FIRST) == ["990012 python3 (200 MB)"]


def test_cards_without_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, BY_CARD)
    assert npu_smi.others(FIRST) == ["1648703 VLLMWorker (316 MB)"]


@pytest.mark.parametrize(
    ("table", "mapping", "code"),
    [
        ("", MAPPING, 0),
        (TABLE, "", 0),
        (TABLE, "dcmi model initialized failed", 0),
        (TABLE, MAPPING, 1),
        (TABLE[: TABLE.index("| 2       0")], MAPPING, 0),
        ("| NPU Chip | Process id |\n| 2 0 | x | y | z |\n", MAPPING, 0),
    ],
)
def test_nobody_is_named_where_the_tool_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, mapping: str, code: int
) -> None:
    tool(tmp_path, monkeypatch, table, mapping, code)
    assert npu_smi.others(FIRST) == []


def test_without_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert npu_smi.others(FIRST) == []


def test_a_tool_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npu-smi").write_text("#!/bin/sh\nexec sleep 5\n")
    (tmp_path / "npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(npu_smi, "LIMIT_SECONDS", 0.1)
    begun = time.monotonic()
    assert npu_smi.others(FIRST) == []
    assert time.monotonic() - begun < 4


def test_the_tuner_says_that_an_npu_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Npu:
        type = "npu"

    monkeypatch.setattr(npu_smi, "others", lambda device: ["4711 python3 (512 MB)", "4712 unnamed (8 MB)"])
    words = tuner._busy_words(Npu(), known("910b"))  # type: ignore[arg-type]
    assert words == "4711 python3 (512 MB), 4712 unnamed (8 MB) on this NPU"
    monkeypatch.setattr(npu_smi, "others", lambda device: [])
    assert tuner._busy_words(Npu(), known("910b")) == ""  # type: ignore[arg-type]
