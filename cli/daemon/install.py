"""`faops daemon install`: units for systemd. What systemd is told then is left to the user."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ..output import json_option, print_json, print_line
from .reach import CLIENT_PACKAGES, SERVER_PACKAGES, require

ENABLE = ("systemctl --user daemon-reload", "systemctl --user enable --now faops.service")
DISABLE = ("systemctl --user stop faops.socket faops.service", "systemctl --user daemon-reload")


@click.command("install", short_help="Let systemd run the daemon.")
@click.option("--user-dir", "directory", metavar="FOLDER", type=click.Path(path_type=Path), help="Write them there.")
@click.option("--force", is_flag=True, help="Overwrite or remove units that were edited, too.")
@click.option("--print", "print_only", is_flag=True, help="Print the units and write nothing.")
@click.option("--remove", is_flag=True, help="Remove the units.")
@json_option
def command(directory: Path | None, force: bool, print_only: bool, remove: bool, as_json: bool) -> None:
    """Write the systemd units of this user that run the daemon: faops.service, and faops.socket, which starts it when
    something asks. Nothing is started; the commands that do so are printed. `loginctl enable-linger` lets it run while
    nobody is logged in.

    \b
    Examples:
      faops daemon install
      faops daemon install --print
      faops daemon install --remove
    """
    if print_only and remove:
        raise click.UsageError("--print and --remove: choose one")
    if print_only:
        _print_units(as_json)
    elif remove:
        _remove(directory, force, as_json)
    else:
        _install(directory, force, as_json)


def _print_units(as_json: bool) -> None:
    require()
    from faops.daemon import systemd

    units = {"faops.service": systemd.service_unit(), "faops.socket": systemd.socket_unit()}
    if as_json:
        print_json("daemon install", units=units)
        return
    for name, text in units.items():
        print_line(f"# {name}")
        print_line(text)


def _install(directory: Path | None, force: bool, as_json: bool) -> None:
    require((*SERVER_PACKAGES, *CLIENT_PACKAGES))
    from faops.daemon import systemd

    files = systemd.install(directory, force=force)
    if as_json:
        written = [{"path": str(file.path), "written": file.written} for file in files]
        print_json("daemon install", files=written, commands=list(ENABLE), systemd=_has_systemd())
        return
    for file in files:
        print_line(f"{'written' if file.written else 'kept as it is'}: {file.path}")
    _tell(ENABLE)


def _remove(directory: Path | None, force: bool, as_json: bool) -> None:
    require()
    from faops.daemon import systemd

    gone = systemd.uninstall(directory, force=force)
    if as_json:
        print_json("daemon install", removed=[str(path) for path in gone], systemd=_has_systemd())
        return
    for path in gone:
        print_line(f"removed: {path}")
    if gone:
        _tell(DISABLE)
    else:
        print_line("there are no units to remove")


def _tell(commands: tuple[str, ...]) -> None:
    """What is to be done next, which is the user's to do."""
    if not _has_systemd():
        print_line("there is no systemctl here; where there is none, `faops daemon start` starts the daemon")
        return
    print_line("next:")
    for line in commands:
        print_line(f"  {line}")


def _has_systemd() -> bool:
    return shutil.which("systemctl") is not None
