"""Which operators torch_npu offers, and calling them with the keywords that its version spells.

Versions of torch_npu differ in the operators they have, in the arguments these take and in how the arguments are
spelled. Nothing here asks for a version number: a call is bound to the operator's own schema at run time. Where
torch_npu is not loaded, planning reads the schemas recorded in ``schemas.json`` instead, so that a machine without an
NPU plans for one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from faops.errors import UnavailableError

NAMESPACE = "npu"
RECORDED = Path(__file__).with_name("schemas.json")

# Arguments that mean the same and are spelled differently from operator to operator.
SPELLINGS: tuple[tuple[str, ...], ...] = (
    ("pre_tokens", "pre_tockens"),
    ("next_tokens", "next_tockens"),
    ("scale", "scale_value", "softmax_scale"),
    ("head_num", "num_heads", "num_query_heads"),
    ("actual_seq_qlen", "actual_seq_lengths"),
    ("actual_seq_kvlen", "actual_seq_lengths_kv"),
    ("pse", "pse_shift"),
    ("sink", "learnable_sink"),
    ("return_softmax_lse", "softmax_lse_flag"),
)
SYNONYMS = {word: group for group in SPELLINGS for word in group}


class Signature:
    """The arguments of one operator, read from its schema."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.defaults: dict[str, Any] = {item.name: item.default_value for item in schema.arguments}
        self.tensors = frozenset(item.name for item in schema.arguments if "Tensor" in str(item.type))

    def spelling(self, keyword: str) -> str:
        """How this operator spells ``keyword``; "" if it takes no such argument."""
        if keyword in self.defaults:
            return keyword
        return next((word for word in SYNONYMS.get(keyword, ()) if word in self.defaults), "")

    def convert(self, name: str, value: Any) -> Any:
        """``value`` as the argument wants it: lengths are a list of ints in one operator, a CPU tensor in another."""
        if name in self.tensors and isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
            return torch.tensor(value, dtype=torch.int64)
        return value


class Operators:
    """The operators of one torch_npu. ``find`` gives the schema of an operator by name, or None."""

    def __init__(self, origin: str, find: Callable[[str], Any]) -> None:
        self.origin = origin
        self._find = find
        self._signatures: dict[str, Signature] = {}

    def __repr__(self) -> str:
        return f"Operators({self.origin!r})"

    def signature(self, name: str) -> Signature | None:
        """The arguments of operator ``name``; None if there is no such operator."""
        schema = self._find(name)
        if schema is None:
            return None
        known = self._signatures.get(name)
        if known is None or known.schema is not schema:
            known = self._signatures[name] = Signature(schema)
        return known

    def has(self, name: str) -> bool:
        """Whether there is an operator ``name``."""
        return self._find(name) is not None

    def takes(self, name: str, *keywords: str) -> bool:
        """Whether operator ``name`` exists and has all of ``keywords``, in whatever spelling."""
        signature = self.signature(name)
        return signature is not None and all(signature.spelling(keyword) for keyword in keywords)

    def bind(self, name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """``keywords`` as operator ``name`` spells them.

        One that it lacks is left out where its value is neutral: None, or the default that it has in a version which
        takes it. Raises UnavailableError for any other, and for an operator that does not exist.
        """
        signature = self.signature(name)
        if signature is None:
            raise UnavailableError(f"{self.origin} has no {name}")
        bound = {}
        for keyword, value in keywords.items():
            spelled = signature.spelling(keyword)
            if spelled:
                bound[spelled] = signature.convert(spelled, value)
            elif not neutral(name, keyword, value):
                raise UnavailableError(f"{name} of {self.origin} has no argument {keyword}, which is {value!r} here")
        return bound


def registered(name: str) -> Any:
    """The schema that this process has for ``npu::name``; None if there is none."""
    if not torch._C._jit_get_schemas_for_operator(f"{NAMESPACE}::{name}"):
        return None
    return overload(name)._schema


def overload(name: str) -> Any:
    """The operator ``npu::name`` of this process, to call."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def operators() -> Operators:
    """Those of the torch_npu in this process, or of the newest recorded one where none is loaded."""
    return _loaded if any(map(registered, recording()["operators"])) else recorded(versions()[-1])


@functools.cache
def recorded(version: str) -> Operators:
    """Those that a version of torch_npu was seen to have. Raises KeyError for one that is not in :func:`versions`."""
    if version not in versions():
        raise KeyError(f"torch_npu {version!r} is not among the recorded {', '.join(versions())}")
    schemas = {
        name: torch._C.parse_schema(f"{NAMESPACE}::{entry['schema']}")
        for name, entries in recording()["operators"].items()
        for entry in entries
        if version in entry["versions"]
    }
    return Operators(f"torch_npu {version}, recorded", schemas.get)


def versions() -> list[str]:
    """The recorded versions of torch_npu, the newest last."""
    return list(recording()["versions"])


@functools.cache
def recording() -> dict[str, Any]:
    """What ``schemas.json`` holds: provenance, versions, and each operator's schemas."""
    content: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content


def neutral(name: str, keyword: str, value: Any) -> bool:
    """Whether to pass ``value`` means the same as to leave ``keyword`` out, in every version that takes it."""
    return value is None or value in documented_defaults(name, keyword)


@functools.cache
def documented_defaults(name: str, keyword: str) -> tuple[Any, ...]:
    """The defaults that recorded versions of operator ``name`` have for ``keyword``, if they agree on one."""
    signatures = (recorded(version).signature(name) for version in versions())
    found = {
        signature.defaults[spelled]
        for signature in signatures
        if signature is not None and (spelled := signature.spelling(keyword))
    }
    return tuple(found) if len(found) == 1 else ()


def call(name: str, *tensors: Any, **keywords: Any) -> Any:
    """Call operator ``name`` of the torch_npu in this process, ``keywords`` bound to its schema.

    Raises UnavailableError if torch_npu is not loaded, or lacks the operator or an argument that must be given.
    """
    bound = _loaded.bind(name, keywords)
    return overload(name)(*tensors, **bound)


def forget() -> None:
    """Forget what was read of operators, for tests that define others under the same names."""
    _loaded._signatures.clear()


_loaded = Operators("torch_npu as loaded", registered)
