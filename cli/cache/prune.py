"""`faops cache prune`: remove what is not needed: compiled kernels used least recently, winners that no call uses."""

from __future__ import annotations

import re

import click

from ..output import json_option, print_json, print_line, print_table
from .words import counted, kernels, readable_size


def parse_days(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Option callback: 90d, 12w or 90 in days, None where the option was not given."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})([dw]?)", value.strip())
    if not found:
        raise click.BadParameter(f"{value!r} is no number of days, such as 90d or 12w", ctx, param)
    return int(found[1]) * (7 if found[2] == "w" else 1)


@click.command("prune", short_help="Remove compiled kernels used least recently, or entries that no call uses.")
@click.option(
    "--max-mb", type=click.IntRange(min=0), metavar="N", help="MiB to keep; by default the setting cubin_cache_mb."
)
@click.option("--stale", is_flag=True, help="Remove entries that no call uses instead.")
@click.option(
    "--older-than", callback=parse_days, metavar="AGE", help="With --stale: only what is as old as 90d or 12w."
)
@click.option("--dry-run", is_flag=True, help="With --stale: say what would be removed, and remove nothing.")
@json_option
def command(max_mb: int | None, stale: bool, older_than: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove compiled kernels, those used least recently first, until the others take no more than N MiB. This happens
    by itself whenever a kernel is compiled. What is removed is compiled again when it is needed.

    With --stale, remove the entries that no call uses: measured with other versions of torch, the compilers or the
    kernel. Notes of problems and unfinished measurements of other versions go with them. The cache may be shared with
    other environments, which would have to be tuned again.

    \b
    Examples:
      faops cache prune
      faops cache prune --max-mb 64
      faops cache prune --stale --dry-run
      faops cache prune --stale --older-than 90d
    """
    if not stale and (older_than is not None or dry_run):
        raise click.UsageError("--older-than and --dry-run go with --stale")
    if stale and max_mb is not None:
        raise click.UsageError("--max-mb is about compiled kernels, --stale about entries: give one of them")
    if stale:
        _prune_entries(older_than or 0, dry_run, as_json)
    else:
        _prune_kernels(max_mb, as_json)


def _prune_kernels(max_mb: int | None, as_json: bool) -> None:
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


def _prune_entries(older_than: int, dry_run: bool, as_json: bool) -> None:
    from faops.autotune.cache import TuningCache, pruning

    cache = TuningCache()
    found = pruning.stale(cache, older_than)
    if not dry_run:
        found = pruning.prune(cache, found)
    if as_json:
        files = [{"path": str(item.path), "key": item.key, "reason": item.reason} for item in found]
        print_json("cache prune", path=str(cache.root), dry_run=dry_run, removed=files)
        return
    if not found:
        print_line(f"nothing to remove in {cache.root}")
        return
    rows = [(item.key or "-", item.reason, item.path.relative_to(cache.base)) for item in found]
    print_table(("key", "reason", "file"), rows)
    print_line()
    done = "would be removed" if dry_run else "removed"
    print_line(f"{counted(len(found), 'file', 'files')} {done} from {cache.root}")
