"""Names the packages; everything else stands in pyproject.toml.

The folder cli/ installs as `faops_cli`, so that no top-level package called `cli` reaches site-packages.
"""

from setuptools import find_packages, setup

library = find_packages(include=["faops", "faops.*"])
command_line = ["faops_cli", *(f"faops_cli.{name}" for name in find_packages("cli"))]

setup(packages=[*library, *command_line], package_dir={"faops_cli": "cli"})
