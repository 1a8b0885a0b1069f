"""Which architecture an Ascend chip is, from what torch_npu tells of it: the number and the name of its SoC."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# An architecture that is not in the tables. torch_npu's numbers grow with the generations, so it is a newer one.
UNKNOWN = "ascend-unknown"


class Generation(NamedTuple):
    """Chips of one architecture: the numbers of torch_npu's enumeration, first to last, and a pattern of the names."""

    arch: str
    first: int
    last: int
    names: str


# Numbers and names: c10_npu::SocVersion in torch_npu/csrc/core/npu/NpuVariables.h and .cpp (2.13). A name that only
# begins with Ascend910B is the first 910, without bfloat16: the chips of the A2 generation are numbered, 910B1 and on.
# Before it was called Ascend950 the A5 generation was Ascend910_95 (triton-ascend, backend/runtime/utils.py).
GENERATIONS = (
    Generation("910", 100, 104, r"910(PremiumA|ProA|ProB|A|B)$"),
    Generation("310P", 200, 205, r"310P"),
    Generation("910B", 220, 225, r"910B\d"),
    Generation("310B", 240, 243, r"310B"),
    Generation("910C", 250, 256, r"910(_93|C)"),
    Generation("950", 260, 260, r"(950|910_95)"),
)


def architecture(soc: int, name: str) -> str:
    """Architecture of the chip with the number ``soc`` (0: not told) and the ``name``, such as "910B" for Ascend910B3.

    The number decides. Where neither is in the table the answer is :data:`UNKNOWN`, and not the nearest guess.
    """
    if soc > 0:
        return next((each.arch for each in GENERATIONS if each.first <= soc <= each.last), UNKNOWN)
    chip = re.sub(r"(?i)^ascend\s*", "", name.strip())
    return next((each.arch for each in GENERATIONS if re.match(each.names, chip, re.IGNORECASE)), UNKNOWN)


def soc_number(npu: Any) -> int:
    """torch_npu's number of the SoC, or 0 where it tells none: it raises for a chip that it does not know itself."""
    for holder in (npu, getattr(npu, "utils", None)):
        ask = getattr(holder, "get_soc_version", None)
        if ask is not None:
            try:
                return max(0, int(ask()))
            except RuntimeError:
                return 0
    return 0


class Properties(NamedTuple):
    """Of one device, 0 where it is not told. ``cores`` are AI cores: one cube unit, since the 910B two vector units."""

    cores: int
    l2_bytes: int
    memory_bytes: int


def properties(npu: Any, index: int) -> Properties:
    """What ``torch.npu.get_device_properties`` tells. Before 2.7.1 it told the memory alone."""
    ask = getattr(npu, "get_device_properties", None)
    told = ask(index) if ask is not None else None
    memory = int(getattr(told, "total_memory", 0) or 0) or int(npu.mem_get_info(index)[1])
    return Properties(
        cores=int(getattr(told, "cube_core_num", 0) or 0),
        l2_bytes=int(getattr(told, "L2_cache_size", 0) or 0),
        memory_bytes=memory,
    )
