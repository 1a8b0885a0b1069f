"""The daemon's own process must stay small: torch and NumPy are for its children."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import faops.daemon

CHILDREN = "faops.daemon.worker"
PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({"torch", "numpy", "cupy", "triton"} & set(sys.modules)))
"""


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(faops.daemon.__path__, "faops.daemon.")]
    return [name for name in found if not f"{name}.".startswith(f"{CHILDREN}.")]


def test_the_daemon_imports_no_torch() -> None:
    names = modules()
    assert {"faops.daemon.service", "faops.daemon.queue", "faops.daemon.http.app", "faops.daemon.gate"} <= set(names)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_its_children_do() -> None:
    """Or the test above could not fail."""
    names = [name for _, name, _ in pkgutil.walk_packages(faops.daemon.__path__, "faops.daemon.")]
    children = [name for name in names if f"{name}.".startswith(f"{CHILDREN}.")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *children], capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
