"""Hardware limits per architecture and a table of well-known devices, each with its source.

Nothing here is measured by faops; detection (:mod:`faops.device`) prefers what the driver says and uses these tables
for what it does not say, and for planning on a machine that has no such card.
"""

from __future__ import annotations

from dataclasses import dataclass

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
_ASCEND = "Ascend CANN documentation, AI Core architecture (unified buffer); bfloat16 from the 910B on: torch_npu documentation"
_ASCEND_950 = "Ascend CANN documentation; the unified buffer is read at run time, no public figure is assumed"

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
    "310P":   Limits("ascend",    256 * KIB, 256 * KIB, 0, 0, 0, 0, False, True, False, False, _ASCEND),
    "910B":   Limits("ascend",    192 * KIB, 192 * KIB, 0, 0, 0, 0, True,  True, False, False, _ASCEND),
    "910C":   Limits("ascend",    192 * KIB, 192 * KIB, 0, 0, 0, 0, True,  True, False, False, _ASCEND),
    "950":    Limits("ascend",    0,         0,         0,     0,   0,  0,  True,  True,  False, True,  _ASCEND_950),
}
# fmt: on

_UNKNOWN_CUDA = Limits("newer", 99 * KIB, 100 * KIB, 65536, 255, 48, 16, True, True, False, False,
                       "smallest limits of any architecture since 8.0, assumed for one not in the table")  # fmt: skip
_HOST = Limits("cpu", 0, 0, 0, 0, 0, 0, True, False, False, False, "torch computes every dtype on a CPU")


def limits(arch: str) -> Limits:
    """Limits of ``arch``; a CUDA architecture newer than the table gets the smallest known ones."""
    if arch in ARCHITECTURES:
        return ARCHITECTURES[arch]
    return _UNKNOWN_CUDA if arch.startswith("sm_") else _HOST


def cuda_number(arch: str) -> int:
    """Compute capability times ten of an NVIDIA architecture or compiler target: 86 for "sm_86", 90 for "sm_90a"."""
    return int("".join(filter(str.isdecimal, arch)))


@dataclass(frozen=True)
class KnownDevice:
    """What a vendor publishes about one device. Bandwidth in bytes/s, 16-bit matrix rate in FLOP/s (dense)."""

    name: str
    arch: str
    units: int
    l2_bytes: int
    memory_bytes: int
    bandwidth: float
    matrix_flops: float
    source: str


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
    "310p":    KnownDevice("Ascend 310P3",                 "310P",   8, 0, 24 * GIB, 204e9, 0.0, "Huawei Atlas 300I Pro specification"),
    "910b":    KnownDevice("Ascend 910B3",                 "910B",   20, 192 * MIB, 64 * GIB, 1600e9, 313e12, "Huawei Atlas A2 training specification"),
    "910c":    KnownDevice("Ascend 910C",                  "910C",   48, 384 * MIB, 128 * GIB, 3200e9, 0.0, "Huawei Atlas A3 specification (both dies)"),
}
# fmt: on
