"""`faops cache cubins` and `prune`: the compiled kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..output import json_option, print_json, print_line, print_table
from .words import counted, kernels, readable_size

if TYPE_CHECKING:
    from faops.backends.cuda_raw.cubin_cache import Entry as Cubin


@click.command("cubins", short_help="List the compiled kernels.")
@json_option
def command(as_json: bool) -> None:
    """List the CUDA kernels that were compiled: target, registers and spilled bytes of a thread, size of the code,
    date, and what the kernel was specialised for (constants that are 0 or false are left out, but for --json).

    \b
    Examples:
      faops cache cubins
      faops cache cubins --json
    """
    from faops.backends.cuda_raw import cubin_cache

    place = str(cubin_cache.directory())
    found = cubin_cache.entries()
    if as_json:
        print_json("cache cubins", path=place, cubins=[entry.as_dict() for entry in found])
        return
    if found:
        columns = ("kernel", "target", "registers", "spilled", "size", "date", "specialised for")
        print_table(columns, [_cubin_row(entry) for entry in found])
        print_line()
    count, size = cubin_cache.usage()
    if unreadable := count - len(found):
        print_line(f"{counted(unreadable, 'file', 'files')} cannot be read; the kernel is compiled again when needed")
    print_line(f"{kernels(count)}, {readable_size(size)}, in {place}" if count else f"no compiled kernels in {place}")


def _cubin_row(entry: Cubin) -> tuple[str, ...]:
    registers, stores = entry.figures.get("registers"), entry.figures.get("spill_store_bytes")
    constants = [name if value == "true" else f"{name}={value}" for name, value in entry.specialization.items()]
    constants = [text for text in constants if not text.endswith(("=false", "=0"))]
    figures = ("-" if value is None else str(value) for value in (registers, stores))
    return entry.name, entry.target, *figures, readable_size(entry.image_bytes), entry.date, " ".join(constants) or "-"
