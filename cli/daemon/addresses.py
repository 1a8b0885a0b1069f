"""An address on the command line, such as 127.0.0.1:8741."""

from __future__ import annotations

import click


def parse_address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Option callback: HOST:PORT as it was written, None where the option was not given."""
    if value is None:
        return None
    from faops.settings import split_address

    try:
        split_address(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}", ctx, param) from None
    return value.strip()
