"""Whether an entry means what its fields say, so that a file from anywhere can be served, shown and copied safely.

Which fields there are and their types is checked in :mod:`faops.autotune.cache.entry`; here it is what they say.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import fields

from faops.autotune.cache.entry import Entry
from faops.device import DeviceProfile
from faops.problem import DTYPES, LAYOUTS, OPS, AttentionProblem
from faops.registry import Config, Kernel

LARGEST_OPTION = 1 << 16  # of a config: no tile, stage or split count comes near
LARGEST_SIZE = 1 << 48  # of a problem: no memory holds more
LONGEST_NAME = 200  # characters of a directory's name; file systems take 255 bytes
_DIRECTORY_NAME = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9.+_-]*")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def complaint(entry: Entry) -> str:
    """What is wrong with the values of ``entry``, the first thing found; "" if nothing is."""
    return next(_complaints(entry), "")


def _complaints(entry: Entry) -> Iterator[str]:
    names = ("key", "device", "kernel", "source_hash", "default_kernel", "faops_version", "strategy", "driver")
    for name in names:
        if not _is_line(getattr(entry, name)):
            yield f"{name} is not one line of text"
    if type(entry.schema) is not int or entry.schema < 1:
        yield f"there never was a schema {entry.schema!r}"
    if not _is_date(entry.date):
        yield f"date is not of the form YYYY-MM-DD: {entry.date!r}"
    if not is_directory_name(entry.device):
        yield f"device is no device's identity: {entry.device!r}"
    if not entry.environment or not all(_is_line(text) for pair in entry.environment.items() for text in pair):
        yield "environment is not a list of names and versions"
    if entry.measurements < 0:
        yield f"measurements is {entry.measurements}"
    if not is_possible(entry.attention_problem()):
        yield "no call can ask its problem"
    configs = (entry.config, entry.default_config, *(timing.config for timing in entry.timings))
    if not all(_is_plain(config) for config in configs):
        yield "a config holds something else than numbers and names"
    if not all(_is_line(timing.kernel) for timing in entry.timings):
        yield "the name of a kernel is not one line of text"


def is_directory_name(name: object) -> bool:
    """Whether ``name`` can be a directory inside the cache, and nothing outside it."""
    return isinstance(name, str) and len(name) <= LONGEST_NAME and bool(_DIRECTORY_NAME.fullmatch(name))


def is_possible(problem: AttentionProblem) -> bool:
    """Whether a call can ask ``problem``: all types, names and sizes are what they must be."""
    if any(type(getattr(problem, item.name)) is not type(item.default) for item in fields(problem)):
        return False
    sides = (problem.band.left, problem.band.right)
    sizes = (problem.batch, problem.seqlen_q, problem.seqlen_k, problem.page_size)
    dims = (problem.head_dim, problem.head_dim_v, problem.heads_q, problem.heads_kv)
    return (
        (problem.op in OPS and problem.layout in LAYOUTS and problem.dtype in DTYPES)
        and all(type(side) is int and -1 <= side <= LARGEST_SIZE for side in sides)
        and all(0 <= size <= LARGEST_SIZE for size in sizes)
        and all(0 < size <= LARGEST_SIZE for size in dims)
        and problem.heads_q % problem.heads_kv == 0
    )


def suits(config: Config, kernel: Kernel, default: Config, problem: AttentionProblem, device: DeviceProfile) -> bool:
    """Whether ``kernel`` can read ``config``: it looks like its ``default``, or is one of its search space.

    It need not be of the space: the winner of a near shape takes part in a search, and may have larger tiles.
    """
    return _is_like(config, default) or config in kernel.configs(problem, device)


def _is_like(config: Config, default: Config) -> bool:
    """Whether the names and types are those of ``default``, the text is the same, and no number is absurd."""
    if set(config) != set(default):
        return False
    pairs = [(value, default[name]) for name, value in config.items()]
    return all(type(one) is type(two) and (one == two or _is_size(one)) for one, two in pairs)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST_OPTION


def plain(text: str) -> str:
    """``text`` without what a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def _is_line(value: object) -> bool:
    """Text that a terminal prints as it stands."""
    return isinstance(value, str) and value.isprintable()


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text) and datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _is_plain(config: Config) -> bool:
    values = config.values()
    return all(map(_is_line, config)) and all(type(value) in (int, bool) or _is_line(value) for value in values)
