"""Fused attention for every accelerator: one call, the best kernel, tuned for the machine it runs on.

Each name is imported when it is first asked for, and torch with it, so that programs which only manage, such as the
tuning daemon and the command line, do without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from faops._version import __version__

if TYPE_CHECKING:
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

_HOMES = {
    "ArgumentError": "errors",
    "AttentionProblem": "problem",
    "FaopsError": "errors",
    "FaopsWarning": "errors",
    "NoKernelError": "errors",
    "attention": "api",
    "attention_varlen": "api",
    "attention_with_kvcache": "kvcache",
    "explain": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
