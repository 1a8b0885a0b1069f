"""`faops daemon`: tuning in the background, and everything that is asked and told of it."""

from __future__ import annotations

import click

from . import cancel, install, jobs, logs, open_page, pause, resume, retry, run, start, status, stop, submit


@click.group("daemon", short_help="Tune in the background while devices are idle.")
def command() -> None:
    """Tune in the background: the daemon sees what programs ran untuned, tunes it while the device is idle, and running
    programs take the winners up. Nothing needs it, and nothing waits for it.

    \b
    Examples:
      faops daemon start
      faops daemon status
      faops daemon submit --model smollm2-135m --wait
      faops daemon pause --for 30m
      faops daemon logs -f
      faops daemon install
    """


for module in (run, start, stop, status, logs, submit, jobs, cancel, retry, pause, resume, open_page, install):
    command.add_command(module.command)
