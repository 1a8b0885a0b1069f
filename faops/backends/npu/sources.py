"""Which files decide how fast a kernel of this backend is: those of its own package and those that all share."""

from __future__ import annotations

from pathlib import Path

from faops.registry import hash_of

SHARED = ("layouts.py", "masks.py", "operators.py", "pse.py")


def hash_of_package(file: str) -> str:
    """Hash for the kernels of the package, beside the shared modules, that ``file`` is in."""
    package = Path(file).parent
    return hash_of([*package.glob("*.py"), *(package.parent / name for name in SHARED)])
