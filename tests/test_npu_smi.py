"""What is read from the tables of a made-up npu-smi."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faops import npu_smi

TABLE = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.0.rc1                 Version: 25.0.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 2     910B3               | OK            | 91.2        45                0    / 0             |
| 0     0                   | 0000:C1:00.0  | 37          0    / 0          3362 / 65536         |
+---------------------------+---------------+----------------------------------------------------+
| 2     910B3               | OK            | -           45                0    / 0             |
| 1     1                   | 0000:C2:00.0  | 0           0    / 0          3362 / 65536         |
+===========================+===============+====================================================+
| 5     310P3               | Warning       | NA          45                0    / 0             |
| 0                         | NA            | 100         0    / 0          3362 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 2       0                 | 4711          | python3                  | 512                     |
| 5       0                 | 4712          | 0000:C1:00.0             | 99                      |
"""
MAPPING = "NPU ID  Chip ID  Chip Logic ID  Chip Name\n2 0 0 Ascend 910B3\n2 1 - Mcu\n5 0 1 Ascend 310P3\n"


def test_the_load_of_each_chip() -> None:
    assert npu_smi.loads(TABLE) == {("2", "0"): 37.0, ("2", "1"): 0.0, ("5", "0"): 100.0}


def test_processes() -> None:
    found = list(npu_smi.processes(TABLE))
    assert found == [(("2", "0"), 4711, "4711 python3 (512 MB)"), (("5", "0"), 4712, "4712 0000:C1:00.0 (99 MB)")]


@pytest.mark.parametrize(("index", "place"), [(0, ("2", "0")), (1, ("5", "0")), (2, ())])
def test_chips_are_found_by_torch_s_number(monkeypatch: pytest.MonkeyPatch, index: int, place: tuple[str, ...]) -> None:
    monkeypatch.delenv(npu_smi.VISIBLE, raising=False)
    assert npu_smi.chip(index, MAPPING) == place


@pytest.mark.parametrize("text", ["", "dcmi model initialized failed", "| 0 | 0000:C1:00.0 | 37 |", TABLE[700:760]])
def test_what_is_no_table_tells_nothing(text: str) -> None:
    assert npu_smi.loads(text) == {}


@settings(max_examples=50)
@given(st.text(alphabet="|0123456789:.NA \n+=-xOK", max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    npu_smi.loads(text)
    list(npu_smi.processes(text))
    npu_smi.chip(0, text)
