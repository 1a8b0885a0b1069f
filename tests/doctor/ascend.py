"""What npu-smi and the child that imports torch_npu say on an Ascend machine in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable

SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3161 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:02:00.0  | 0           0    / 0          3161 / 65536         |
+===========================+===============+====================================================+
"""

# An A3 card holds two chips, each with rows of its own and a number of its own among all of them.
SMI_TWO_CHIPS = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.1                   Version: 25.2.1                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 171.5       37                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3157 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           38                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2883 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1234          | python3                  | 107                     |
+===========================+===============+====================================================+
"""

HANG = f"exec {shutil.which('sleep')} 30"  # a last command for a program that never ends

Stage = dict[str, object]
DEVICE: Stage = {"name": "Ascend910B3", "soc": 223, "arch": "910B", "cores": 20, "bytes": 61 * 2**30}
TRIED: Stage = {"name": "npu_fusion_attention", "dtype": "float16", "error": 1e-4, "allowed": 1e-3}


def told(change: Callable[[dict[str, Stage]], object] | None = None, until: str = "") -> list[Stage]:
    """The stages of the child, in order, after ``change``; only those before ``until``."""
    stages: dict[str, Stage] = {
        "import": {"version": "2.13.0.post1"},
        "operators": {"origin": "torch_npu as loaded", "served": ["attention", "gradients"], "lacking": {}},
        "devices": {"devices": [dict(DEVICE), dict(DEVICE)]},
        "bfloat16": {"name": "Ascend910B3", "expected": True, "supported": True, "right": True},
        "numerics": {"tried": [dict(TRIED), {**TRIED, "dtype": "bfloat16"}]},
    }
    if change:
        change(stages)
    names = list(stages)
    return [{"stage": name, **stages[name]} for name in names[: names.index(until) if until else None]]
