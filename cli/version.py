"""`faops version`: versions of faops and of everything it may use, read without importing any of it."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from .output import json_option, print_json, print_pairs

# Distributions that faops uses where they are installed.
OPTIONAL = (
    "numpy", "transformers", "accelerate", "gguf", "triton", "triton-ascend", "cupy-cuda12x", "cupy-cuda13x",
    "torch-npu", "starlette", "uvicorn", "httpx", "prometheus-client",
)  # fmt: skip


@click.command("version", short_help="Print the versions of faops and what it uses.")
@json_option
def command(as_json: bool) -> None:
    """Print the versions of faops, Python, torch and the optional packages.

    \b
    Examples:
      faops version
      faops version --json
    """
    main = {"faops": installed("faops"), "python": platform.python_version(), "torch": installed("torch")}
    where = f"{platform.system()} {platform.release()} {platform.machine()}"
    packages = {name: installed(name) for name in OPTIONAL}
    if as_json:
        print_json("version", **main, platform=where, packages=packages)
        return
    rows = [*main.items(), ("platform", where), *packages.items()]
    print_pairs([(name, version or "not installed") for name, version in rows])


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
