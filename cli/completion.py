"""`faops completion`: the script that lets a shell complete `faops`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .output import json_option, print_json

INSTALL = {
    "bash": "faops completion bash > ~/.faops-complete.bash && echo '. ~/.faops-complete.bash' >> ~/.bashrc",
    "zsh": "faops completion zsh > ~/.faops-complete.zsh && echo '. ~/.faops-complete.zsh' >> ~/.zshrc",
    "fish": "faops completion fish > ~/.config/fish/completions/faops.fish",
}


@click.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(sorted(INSTALL)))
@json_option
def command(shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL; its first line says how to install it.

    \b
    Examples:
      faops completion bash > ~/.faops-complete.bash && echo '. ~/.faops-complete.bash' >> ~/.bashrc
      faops completion zsh > ~/.faops-complete.zsh && echo '. ~/.faops-complete.zsh' >> ~/.zshrc
      faops completion fish > ~/.config/fish/completions/faops.fish
    """
    from .main import command_line

    script_of = get_completion_class(shell)
    assert script_of is not None  # click supports every shell that INSTALL lists
    script = script_of(command_line, {}, "faops", "_FAOPS_COMPLETE").source()
    if as_json:
        print_json("completion", shell=shell, install=INSTALL[shell], script=script)
        return
    click.echo(f"# install: {INSTALL[shell]}")
    click.echo(script)
