"""Making ``import xformers.ops`` mean this package, in a process that has no xFormers of its own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from faops.errors import FaopsError

__version__ = "0.0.35"  # of xFormers, whose names these are
PACKAGE = "faops.adapters.xformers"
MODULES = ("", ".ops", ".ops.fmha", ".ops.fmha.attn_bias")

_removed: dict[str, ModuleType] | None = (
    None  # the modules of a real xFormers whose place is taken; None: not installed
)


def install(force: bool = False) -> None:
    """Make ``import xformers.ops`` and the modules in it resolve to faops, in this process, until :func:`uninstall`.

    Call it before what uses xFormers is imported. Only the modules about attention exist, and
    ``importlib.metadata`` knows of no distribution: libraries that ask it for the version go on without xFormers.

    Args:
        force: take the place of an xFormers that is installed or imported, too.

    Raises FaopsError if there is a real xFormers and not ``force``; nothing has changed then.
    """
    global _removed
    if _removed is not None:
        return
    if not force and importlib.util.find_spec("xformers") is not None:
        raise FaopsError(
            "xformers is installed here and stays what it is; "
            "install(force=True) puts faops in its place for this process"
        )
    ours = {f"xformers{below}": importlib.import_module(f"{PACKAGE}{below}") for below in MODULES}
    _removed = _take_out()
    sys.modules.update(ours)


def uninstall() -> None:
    """Undo :func:`install`. Does nothing where it was not called."""
    global _removed
    if _removed is not None:
        _take_out()
        sys.modules.update(_removed)
        _removed = None


def _take_out() -> dict[str, ModuleType]:
    """Remove xformers and all in it from sys.modules; returns them."""
    found = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "xformers"}
    for name in found:
        del sys.modules[name]
    return found
