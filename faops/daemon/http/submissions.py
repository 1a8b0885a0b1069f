"""What may be submitted: the form of a request. Whether its model, plan or shapes make sense, the worker finds out."""

from __future__ import annotations

from typing import Any

from faops.daemon.http import checks
from faops.daemon.http.problems import ProblemError, wrong

SOURCES = ("model", "hf_config", "plan", "shapes")
WITH_OPTIONS = ("model", "hf_config")
# Those of faops.autotune.workloads, written down here because importing them imports torch.
PHASES = ("prefill", "generate", "decode", "training")

LARGEST_PLAN = 1 << 18  # characters
LONGEST_SHAPE = 1000
LONGEST_PATH = 4096

_length = checks.whole(1, 2**31 - 1)
_lengths = checks.one_or_list(_length, 64)
_path = checks.text(LONGEST_PATH, r"/[^\x00]*", "an absolute path, or an object as in config.json", lines=True)

OPTIONS: dict[str, checks.Check[Any]] = {
    "dtype": checks.text(32, r"[a-z0-9_.]+", "the name of a dtype, such as bfloat16"),
    "batch": _length,
    "prompt": _lengths,
    "context": _lengths,
    "phases": checks.one_or_list(checks.one_of(PHASES), 16),
    "page_size": _lengths,
    "training": checks.flag,
    "kv_cache": checks.flag,
    "packed": checks.flag,
}


def _hf_config(field: str, value: Any) -> Any:
    return value if isinstance(value, dict) else _path(field, value)


_fields = checks.fields(
    {
        "model": checks.text(200),
        "hf_config": _hf_config,
        "plan": checks.text(LARGEST_PLAN, lines=True),
        "shapes": checks.list_of(checks.text(LONGEST_SHAPE), 1, 1000),
        "device": checks.text(20, r"[a-z]{1,16}(:[0-9]{1,3})?", "a device such as cpu, cuda or cuda:1"),
        "options": checks.fields(OPTIONS, "options."),
        "force": checks.flag,
    }
)


def check(field: str, value: Any) -> dict[str, Any]:
    """A request as the queue keeps it: exactly one of SOURCES, and options only beside those that have some."""
    request = _fields(field, value)
    named = [source for source in SOURCES if source in request]
    if len(named) != 1:
        found = f"{' and '.join(named)}" if named else "none"
        raise ProblemError(422, f"{field}: got {found}, expected exactly one of {', '.join(SOURCES)}", field)
    if "options" in request and named[0] not in WITH_OPTIONS:
        raise wrong("options", request["options"], f"none with {named[0]}, where they are written inside")
    return request
