"""`faops cache`: list, show and clear what tuning has found, and the kernels that were compiled."""

from __future__ import annotations

import click

from . import clear, cubins, ls, prune, show


@click.group("cache", short_help="List, show and clear what tuning has found.")
def command() -> None:
    """List, show and clear the winners that tuning has found, and the CUDA kernels that were compiled.

    \b
    Examples:
      faops cache ls
      faops cache show forward/dense/float32/b1/q1024
      faops cache clear --yes
      faops cache cubins
    """


for module in (ls, show, clear, cubins, prune):
    command.add_command(module.command)
