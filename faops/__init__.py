"""Fused attention for every accelerator: one call, the best kernel, tuned for the machine it runs on."""

from faops._version import __version__
from faops.api import attention, attention_varlen, explain
from faops.errors import ArgumentError, FaopsError, FaopsWarning, NoKernelError
from faops.kvcache import attention_with_kvcache
from faops.problem import AttentionProblem

__all__ = [
    "ArgumentError",
    "AttentionProblem",
    "FaopsError",
    "FaopsWarning",
    "NoKernelError",
    "__version__",
    "attention",
    "attention_varlen",
    "attention_with_kvcache",
    "explain",
]
