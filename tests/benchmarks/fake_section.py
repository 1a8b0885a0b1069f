"""A section whose items end in every way there is."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, SkipError, WrongError


def fine() -> dict[str, Any]:
    return {"figure": 7}


def wrong() -> dict[str, Any]:
    raise WrongError("4 is not 5", {"figure": 4})


def raising() -> dict[str, Any]:
    raise RuntimeError("CUDA error: something")


def skipped() -> dict[str, Any]:
    raise SkipError("there is no second device")


def crashing() -> dict[str, Any]:
    os.write(2, b"an illegal memory access\n")
    os._exit(7)


def hanging() -> dict[str, Any]:
    time.sleep(1000)
    return {}


def items(options: Options) -> list[Item]:
    """All of them, or the one whose name stands in the card's place; "broken" and "slow" do not get that far."""
    found = [Item(f.__name__, f) for f in (fine, wrong, raising, skipped, crashing, hanging, fine)]
    if options.card == "broken":
        raise ImportError("no such library")
    if options.card == "slow":
        hanging()
    return [item for item in found if options.card in ("", item.name)]
