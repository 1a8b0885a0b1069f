"""`faops cache`: look at, clear and exchange what tuning has found, and the kernels that were compiled."""

from __future__ import annotations

import click

from . import clear, cubins, export, imports, ls, merge, prune, report, show


@click.group("cache", short_help="List, show, exchange and clear what tuning has found.")
def command() -> None:
    """List, show, exchange and clear the winners that tuning has found, and the CUDA kernels that were compiled.

    \b
    Examples:
      faops cache ls
      faops cache show forward/dense/float32/b1/q1024
      faops cache export winners.json
      faops cache import winners.json
      faops cache prune --stale
      faops cache clear --yes
      faops cache cubins
    """


for module in (ls, show, report, export, imports, merge, prune, clear, cubins):
    command.add_command(module.command)
