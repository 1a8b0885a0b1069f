"""`faops config`: every setting, its value and where the value comes from."""

from __future__ import annotations

import click

from .output import json_option, print_json, print_pairs, print_table


@click.command("config", short_help="Print every setting, its value and its source.")
@json_option
def command(as_json: bool) -> None:
    """Print every setting with its value, its source and its environment variable.

    A setting is taken from the call's argument, else the environment, else faops.yaml, else the default.

    \b
    Examples:
      faops config
      FAOPS_TUNING=0 faops config
      faops config --json
    """
    from faops import settings

    config_path, cache_path = settings.config_path(), settings.cache_root()
    rows = []
    for setting in settings.SETTINGS.values():
        value = settings.resolve(setting.name)
        rows.append((setting, value))
    if as_json:
        listed = [
            {
                "name": setting.name,
                "value": value.value,
                "source": value.source,
                "variable": setting.variable,
                "default": setting.default,
                "meaning": setting.meaning,
            }
            for setting, value in rows
        ]
        paths = {"config": str(config_path), "config_exists": config_path.is_file(), "cache": str(cache_path)}
        print_json("config", settings=listed, paths=paths)
        return
    print_table(
        ("setting", "value", "source", "variable", "meaning"),
        [(s.name, _shown(v.value), v.source, s.variable, s.meaning) for s, v in rows],
    )
    missing = "" if config_path.is_file() else " (does not exist)"
    print_pairs([("", ""), ("config file", f"{config_path}{missing}"), ("cache", cache_path)])


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value) or "(empty)"
