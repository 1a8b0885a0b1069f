"""A length of time on the command line, such as 90, 60s, 2m or 1h."""

from __future__ import annotations

import re

import click

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Option callback: 90, 60s, 1.5m or 1h in seconds, None where the option was not given."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value.strip())
    result = float(found.group(1)) * _SECONDS[found.group(2)] if found else 0.0
    if not result > 0:
        raise click.BadParameter(f"{value!r} is no time above zero such as 60s, 2m or 1h", ctx, param)
    return result
