"""Making ``import flash_attn`` mean this package, in a process that has no flash-attn of its own.

Three things of Python are told: ``sys.modules``, so that imports resolve, ``importlib.util.find_spec`` with them; and
``importlib.metadata``, through a finder that knows the distribution, because libraries ask it for the version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from faops.errors import FaopsError

__version__ = "2.8.4"  # of flash-attn, whose interface this is
PACKAGE = "faops.adapters.flash_attn"
HOPPER = f"{PACKAGE}.hopper"  # the names of flash-attn 3
EXTENSION = "flash_attn_2_cuda"
# The top-level modules that become ours.
NAMES = ("flash_attn", EXTENSION, "flash_attn_interface", "flash_attn_3")
# Of our modules, those that flash-attn has too; they and what is in them get a second name.
COUNTERPARTS = ("bert_padding", "flash_attn_interface", "layers", "ops")
DISTRIBUTION = "flash-attn"


def install(force: bool = False) -> None:
    """Make ``import flash_attn`` and its submodules resolve to faops, in this process, until :func:`uninstall`.

    Also ``import flash_attn_2_cuda``, its compiled extension, and ``import flash_attn_interface`` and
    ``flash_attn_3.flash_attn_interface``, as flash-attn 3 is called. Call it before what uses flash-attn is imported: a
    module that has looked for it already keeps what it found. May be called more than once.

    Args:
        force: take the place of a flash-attn that is installed or imported, too.

    Raises FaopsError if there is a real flash-attn and not ``force``; nothing has changed then.
    """
    if installed():
        return
    for name in NAMES:
        if not force and (found := _find(name)):
            raise FaopsError(
                f"{name} is installed here ({found}) and stays what it is; "
                f"install(force=True) puts faops in its place for this process"
            )
    ours = dict(_modules())  # imported in full before anything changes
    removed = _take_out()
    sys.modules.update(ours)
    sys.meta_path.insert(0, Distributions(removed))
    importlib.invalidate_caches()


def uninstall() -> None:
    """Undo :func:`install`: names resolve as they did before. Does nothing where it was not called."""
    finder = _finder()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    _take_out()
    sys.modules.update(finder.removed)
    importlib.invalidate_caches()


def installed() -> bool:
    """Whether ``import flash_attn`` means this package."""
    return _finder() is not None


def _find(name: str) -> str:
    """Where a module of that name comes from; empty if there is none."""
    if name in sys.modules:
        module: Any = sys.modules[name]
        return "" if module is None else str(getattr(module, "__file__", None) or "imported already")
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ""
    return str(spec.origin or next(iter(spec.submodule_search_locations or ()), "a namespace"))


def _take_out() -> dict[str, ModuleType]:
    """Remove from sys.modules what has one of the names or is inside it; returns it."""
    found = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in NAMES}
    for name in found:
        del sys.modules[name]
    return found


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """Our modules, imported, by the names that they take."""
    root = importlib.import_module(PACKAGE)
    yield "flash_attn", root
    for found in pkgutil.walk_packages(root.__path__, f"{PACKAGE}."):
        below = found.name.removeprefix(f"{PACKAGE}.")
        if below.partition(".")[0] in COUNTERPARTS:
            yield f"flash_attn.{below}", importlib.import_module(found.name)
    yield EXTENSION, importlib.import_module(f"{PACKAGE}.{EXTENSION}")
    hopper = importlib.import_module(HOPPER)
    yield "flash_attn_interface", hopper
    package = ModuleType("flash_attn_3", "flash-attn 3 as faops has it: the module flash_attn_interface.")
    package.__spec__ = ModuleSpec("flash_attn_3", None, is_package=True)
    package.__path__ = []
    package.flash_attn_interface = hopper  # type: ignore[attr-defined]
    yield "flash_attn_3", package
    yield "flash_attn_3.flash_attn_interface", hopper


class Distributions:
    """A finder of no module, through which importlib.metadata learns of the distribution ``flash-attn``."""

    def __init__(self, removed: dict[str, ModuleType]) -> None:
        self.removed = removed  # modules of a real flash-attn whose place is taken

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        return None

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        wanted = None if context is None else context.name
        if wanted is None or re.sub("[-_.]+", "-", wanted).lower() == DISTRIBUTION:
            yield FlashAttnDistribution()


class FlashAttnDistribution(importlib.metadata.Distribution):
    """What importlib.metadata reads about the stand-in. No files: there is none to list."""

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            summary = "Summary: flash-attn's interface, served by faops"
            return f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {__version__}\n{summary}\n"
        return "flash_attn\n" if filename == "top_level.txt" else None

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"{DISTRIBUTION} is a stand-in of faops and has no file {path}")


def _finder() -> Distributions | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, Distributions)), None)
