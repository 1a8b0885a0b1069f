"""`faops cache prune`: remove the compiled kernels used least recently."""

from __future__ import annotations

import click

from ..output import json_option, print_json, print_line
from .words import kernels, readable_size


@click.command("prune", short_help="Remove the compiled kernels used least recently.")
@click.option(
    "--max-mb", type=click.IntRange(min=0), metavar="N", help="MiB to keep; by default the setting cubin_cache_mb."
)
@json_option
def command(max_mb: int | None, as_json: bool) -> None:
    """Remove compiled kernels, those used least recently first, until the others take no more than N MiB.

    This happens by itself whenever a kernel is compiled. What is removed is compiled again when it is needed.

    \b
    Examples:
      faops cache prune
      faops cache prune --max-mb 64
    """
    from faops.architectures import MIB
    from faops.backends.cuda_raw import cubin_cache

    limit = cubin_cache.limit_bytes() if max_mb is None else max_mb * MIB
    removed, freed = cubin_cache.prune(limit)
    count, size = cubin_cache.usage()
    place = str(cubin_cache.directory())
    if as_json:
        left = {"count": count, "bytes": size}
        print_json("cache prune", path=place, limit_bytes=limit, removed=removed, freed_bytes=freed, left=left)
        return
    gone = f"removed {kernels(removed)}, {readable_size(freed)}" if removed else "nothing to remove"
    print_line(f"{gone}; {kernels(count)}, {readable_size(size)}, of at most {readable_size(limit)} in {place}")
