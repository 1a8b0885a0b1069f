"""docs/cli.md and docs/settings.md know every command, option, group, device and setting."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from faops_cli.completion import INSTALL
from faops_cli.main import COMMANDS, command_line

from faops import settings
from faops.architectures import KNOWN_DEVICES
from faops.doctor import GROUPS
from faops.doctor.settings import OTHER_VARIABLES
from faops.problem import parse_shape

DOCS = Path(__file__).parents[2] / "docs"
CLI = (DOCS / "cli.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_section_with_its_options(name: str) -> None:
    section = CLI.split(f"\n## faops {name}\n")[1].split("\n## ")[0]
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for part in commands:
        for parameter in part.params:
            if isinstance(parameter, click.Option) and parameter.name != "as_json":
                assert all(f"`{option}" in section or f" {option}" in section for option in parameter.opts), parameter


def test_groups_devices_and_shells() -> None:
    for name in (*GROUPS, *KNOWN_DEVICES):
        assert f"`{name}`" in CLI
    for line in INSTALL.values():
        assert line in CLI


def test_every_shape_in_the_docs_parses() -> None:
    shapes = [
        word.strip("`") for line in CLI.splitlines() if "--shape " in line for word in line.split() if "sq=" in word
    ]
    assert len(shapes) >= 3
    for shape in shapes:
        parse_shape(shape)


def test_every_setting_is_in_the_table() -> None:
    text = (DOCS / "settings.md").read_text()
    for setting in settings.SETTINGS.values():
        default = {"True": "1", "False": "0", "": "empty"}.get(str(setting.default), str(setting.default))
        assert f"| `{setting.name}` | `{setting.variable}` | {default} | {setting.meaning} |" in text
    for variable in OTHER_VARIABLES:
        assert f"`{variable}`" in text
