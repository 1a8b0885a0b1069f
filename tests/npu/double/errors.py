"""How the real operators refuse a call: RuntimeError, with the code that their documents give to the failure."""

from __future__ import annotations

from typing import NoReturn

# Codes of the aclnn interface, and of the checks that torch_npu makes before it.
HOST_PARAMETER = "ERR01001"  # torch_npu: invalid parameter
HOST_UNSUPPORTED = "ERR01007"  # torch_npu: the feature is not supported
NULL_POINTER = 161001
INVALID_PARAMETER = 161002  # data type, format or shape
TILING = 561002  # the shapes or attributes have no tiling
INNER_NULL_POINTER = 561103  # what a mask of an unsupported shape ends in


def refuse_on_host(operator: str, text: str, code: str = HOST_PARAMETER) -> NoReturn:
    """What torch_npu itself checks, before CANN sees the call."""
    raise RuntimeError(f"{operator}: {text}\n[ERROR] {code} OPS invalid parameter or unsupported feature")


def refuse(operator: str, code: int, text: str) -> NoReturn:
    """What CANN refuses."""
    raise RuntimeError(f"call of {operator} failed, error code is {code}: {text}")
