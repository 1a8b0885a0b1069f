"""Hardware limits per architecture and a table of well-known devices, each with its source.

Nothing here is measured by faops; detection (:mod:`faops.device`) prefers what the driver says and uses these tables
for what it does not say, and for planning on a machine that has no such card.
"""

from __future__ import annotations

from dataclasses import dataclass

from faops.ascend import UNKNOWN

KIB = 1024
MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True)
class Limits:
    """Per-architecture limits that shape a kernel. Sizes in bytes, registers are 32-bit; 0 means not applicable."""

    family: str
    shared_per_block: int  # opt-in maximum
    shared_per_unit: int
    registers_per_unit: int
    registers_per_thread: int
    warps_per_unit: int
    blocks_per_unit: int
    bfloat16: bool  # matrix units take bfloat16
    async_copy: bool  # cp.async or better
    tma: bool
    fp8: bool
    source: str


_GUIDE = "CUDA C++ Programming Guide, Compute Capabilities, Technical Specifications"
_BFLOAT16 = "bfloat16 from the 910B1 on: torch_npu, IsBF16Supported in NpuVariables.cpp"
_CANN = "CANN, platform_config/Ascend{}.ini (ub_size); " + _BFLOAT16
_ASSUMED = "unified buffer: the smallest of the table is assumed; " + _BFLOAT16

# fmt: off
ARCHITECTURES: dict[str, Limits] = {
    "sm_75":  Limits("turing",    64 * KIB,  64 * KIB,  65536, 255, 32, 16, False, False, False, False, _GUIDE + ", 7.5"),
    "sm_80":  Limits("ampere",    163 * KIB, 164 * KIB, 65536, 255, 64, 32, True,  True,  False, False, _GUIDE + ", 8.0"),
    "sm_86":  Limits("ampere",    99 * KIB,  100 * KIB, 65536, 255, 48, 16, True,  True,  False, False, _GUIDE + ", 8.6"),
    "sm_87":  Limits("ampere",    163 * KIB, 164 * KIB, 65536, 255, 48, 16, True,  True,  False, False, _GUIDE + ", 8.7"),
    "sm_89":  Limits("ada",       99 * KIB,  100 * KIB, 65536, 255, 48, 24, True,  True,  False, True,  _GUIDE + ", 8.9"),
    "sm_90":  Limits("hopper",    227 * KIB, 228 * KIB, 65536, 255, 64, 32, True,  True,  True,  True,  _GUIDE + ", 9.0"),
    "sm_100": Limits("blackwell", 227 * KIB, 228 * KIB, 65536, 255, 64, 32, True,  True,  True,  True,  _GUIDE + ", 10.0"),
    "sm_103": Limits("blackwell", 227 * KIB, 228 * KIB, 65536, 255, 64, 32, True,  True,  True,  True,  _GUIDE + ", 10.3"),
    "sm_120": Limits("blackwell", 99 * KIB,  100 * KIB, 65536, 255, 48, 24, True,  True,  True,  True,  _GUIDE + ", 12.0"),
    "910":    Limits("ascend",    256 * KIB, 256 * KIB, 0, 0, 0, 0, False, True, False, False, _CANN.format("910A")),
    "310P":   Limits("ascend",    256 * KIB, 256 * KIB, 0, 0, 0, 0, False, True, False, False, _CANN.format("310P3")),
    "310B":   Limits("ascend",    192 * KIB, 192 * KIB, 0, 0, 0, 0, True,  True, False, False, _ASSUMED),
    "910B":   Limits("ascend",    192 * KIB, 192 * KIB, 0, 0, 0, 0, True,  True, False, False, _CANN.format("910B3")),
    "910C":   Limits("ascend",    192 * KIB, 192 * KIB, 0, 0, 0, 0, True,  True, False, False, _CANN.format("910_9392")),
    "950":    Limits("ascend",    248 * KIB, 248 * KIB, 0, 0, 0, 0, True,  True, False, True,  _CANN.format("950PR_9579")),
}
# fmt: on

_UNKNOWN_CUDA = Limits("newer", 99 * KIB, 100 * KIB, 65536, 255, 48, 16, True, True, False, False,
                       "smallest limits of any architecture since 8.0, assumed for one not in the table")  # fmt: skip
_UNKNOWN_ASCEND = Limits("ascend", 192 * KIB, 192 * KIB, 0, 0, 0, 0, True, True, False, False,
                         "a chip newer than the table; " + _ASSUMED)  # fmt: skip
_HOST = Limits("cpu", 0, 0, 0, 0, 0, 0, True, False, False, False, "torch computes every dtype on a CPU")


def limits(arch: str) -> Limits:
    """Limits of ``arch``; an architecture of NVIDIA or Ascend newer than the table gets the smallest known ones."""
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    if arch == UNKNOWN:
        return _UNKNOWN_ASCEND
    return _UNKNOWN_CUDA if arch.startswith("sm_") else _HOST


def cuda_number(arch: str) -> int:
    """Compute capability times ten of an NVIDIA architecture or compiler target: 86 for "sm_86", 90 for "sm_90a"."""
    return int("".join(filter(str.isdecimal, arch)))


@dataclass(frozen=True)
class KnownDevice:
    """What a vendor publishes about one device. Bandwidth in bytes/s, 16-bit matrix rate in FLOP/s (dense).

    ``soc`` is torch_npu's number of an Ascend chip, of which one die is meant: that is what a torch device reaches.
    """

    name: str
    arch: str
    units: int
    l2_bytes: int
    memory_bytes: int
    bandwidth: float
    matrix_flops: float
    source: str
    soc: int = 0


# fmt: off
KNOWN_DEVICES: dict[str, KnownDevice] = {
    "t4":      KnownDevice("Tesla T4",                     "sm_75",  40, 4 * MIB, 16 * GIB, 320e9, 65e12, "NVIDIA T4 datasheet"),
    "2080ti":  KnownDevice("NVIDIA GeForce RTX 2080 Ti",   "sm_75",  68, int(5.5 * MIB), 11 * GIB, 616e9, 53.8e12, "NVIDIA Turing architecture whitepaper (float32 accumulation)"),
    "a100":    KnownDevice("NVIDIA A100-SXM4-80GB",        "sm_80",  108, 40 * MIB, 80 * GIB, 2039e9, 312e12, "NVIDIA A100 datasheet"),
    "3090":    KnownDevice("NVIDIA GeForce RTX 3090",      "sm_86",  82, 6 * MIB, 24 * GIB, 936e9, 71e12, "NVIDIA GA102 architecture whitepaper (float32 accumulation)"),
    "4090":    KnownDevice("NVIDIA GeForce RTX 4090",      "sm_89",  128, 72 * MIB, 24 * GIB, 1008e9, 165.2e12, "NVIDIA Ada architecture whitepaper (float32 accumulation)"),
    "l4":      KnownDevice("NVIDIA L4",                    "sm_89",  58, 48 * MIB, 24 * GIB, 300e9, 121e12, "NVIDIA L4 datasheet"),
    "h100":    KnownDevice("NVIDIA H100 80GB HBM3",        "sm_90",  132, 50 * MIB, 80 * GIB, 3350e9, 989e12, "NVIDIA H100 datasheet (SXM)"),
    "h200":    KnownDevice("NVIDIA H200",                  "sm_90",  132, 50 * MIB, 141 * GIB, 4800e9, 989e12, "NVIDIA H200 datasheet (SXM)"),
    "b200":    KnownDevice("NVIDIA B200",                  "sm_100", 148, 126 * MIB, 180 * GIB, 8000e9, 2250e12, "NVIDIA HGX B200 datasheet"),
    "5090":    KnownDevice("NVIDIA GeForce RTX 5090",      "sm_120", 170, 96 * MIB, 32 * GIB, 1792e9, 209.5e12, "NVIDIA RTX Blackwell architecture whitepaper (float32 accumulation)"),
    "310p":    KnownDevice("Ascend 310P3",                 "310P",   8, 16 * MIB, 24 * GIB, 204e9, 70e12, "Huawei Atlas 300I Pro specification; CANN, platform_config/Ascend310P3.ini (AI cores, L2)", soc=202),
    "910b":    KnownDevice("Ascend 910B3",                 "910B",   20, 192 * MIB, 64 * GIB, 1600e9, 313e12, "Huawei Atlas A2 training specification; CANN, platform_config/Ascend910B3.ini (AI cores, L2)", soc=223),
    "910c":    KnownDevice("Ascend 910_9392",              "910C",   24, 192 * MIB, 64 * GIB, 1600e9, 376e12, "Huawei CloudMatrix384, arXiv:2506.12708, section 3.3 (one die of two); CANN, platform_config/Ascend910_9392.ini (AI cores)", soc=251),
    "950":     KnownDevice("Ascend 950PR_9579",            "950",    28, 128 * MIB, 128 * GIB, 1600e9, 0.0, "Huawei Connect 2025 announcement of the 950PR (memory); CANN, platform_config/Ascend950PR_9579.ini (AI cores, L2); no 16-bit rate is published", soc=260),
}
# fmt: on
