"""Reading a tuning plan, a YAML file (docs/plan-file.md). Every error names the file and the line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from faops.autotune.workloads.attention_config import PHASES, Options
from faops.errors import PlanError
from faops.problem import dtype_name

Source = Literal["model", "hf_config", "shape"]

VERSION = 1
SOURCES: tuple[Source, ...] = ("model", "hf_config", "shape")
FLAGS = ("training", "kv_cache", "packed")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INTEGER = re.compile("0|-?[1-9][0-9]{0,8}")
OPTIONS = ("dtype", "batch", "prompt", "context", "phases", "page_size", *FLAGS)
LISTS = ("prompt", "context", "page_size")  # options of one number or several
SHAPE_OPTIONS = ("dtype", "batch", "training")  # a shape has its own lengths
TOP = ("version", "defaults", "workloads")


@dataclass(frozen=True)
class PlanEntry:
    """One item of a plan's workloads: where the problems come from, the options, and its place "file:line"."""

    source: Source
    value: str
    options: Options
    place: str


def read(path: str | Path) -> list[PlanEntry]:
    """The entries of the plan at ``path``, in order, each with the plan's defaults filled in. Raises PlanError."""
    file = Path(path)
    try:
        file = file.expanduser()
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except RuntimeError as error:  # ~ of a user that there is not
        raise PlanError(f"{file} cannot be read: {error}") from None
    return parse(text, file, file.parent)


def parse(text: str, file: str | Path, folder: Path | None) -> list[PlanEntry]:
    """The entries of a plan given as text, whose errors name ``file``. Raises PlanError.

    A relative path in it is relative to ``folder``; where there is none, none is allowed.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:  # lists inside of each other without end
        raise PlanError(f"{file} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PlanError(f"{file}:{line}: {error.problem or error.context or 'broken YAML'}") from None
    except yaml.YAMLError as error:
        raise PlanError(f"{file}: broken YAML: {error}") from None
    if root is None:
        raise PlanError(f"{file}:1: the plan is empty, expected a mapping with workloads")
    return _Reader(file, folder).plan(root)


class _Reader:
    def __init__(self, file: str | Path, folder: Path | None) -> None:
        self.file, self.folder = file, folder

    def fail(self, node: yaml.Node, message: str) -> PlanError:
        return PlanError(f"{self.place(node)}: {message}")

    def place(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"

    def plan(self, root: yaml.Node) -> list[PlanEntry]:
        top = self.mapping(root, "the plan", TOP)
        if "version" in top and self.integer(top["version"], "version") != VERSION:
            raise self.fail(top["version"], f"version: got {top['version'].value}, expected {VERSION}")
        defaults = self.options(self.mapping(top["defaults"], "defaults", OPTIONS)) if "defaults" in top else {}
        workloads = top.get("workloads")
        if workloads is None:
            raise self.fail(root, "workloads is missing")
        if not isinstance(workloads, yaml.SequenceNode) or not workloads.value:
            raise self.fail(workloads, "workloads: expected a list of entries, each beginning with '- '")
        return [self.entry(node, defaults) for node in workloads.value]

    def entry(self, node: yaml.Node, defaults: dict[str, Any]) -> PlanEntry:
        items = self.mapping(node, "an entry of workloads", (*SOURCES, *OPTIONS))
        named = [source for source in SOURCES if source in items]
        if len(named) != 1:
            got = " and ".join(named) or "none of them"
            raise self.fail(node, f"an entry of workloads names one of {', '.join(SOURCES)}; got {got}")
        source = named[0]
        allowed = SHAPE_OPTIONS if source == "shape" else OPTIONS
        for name in items:
            if name in OPTIONS and name not in allowed:
                raise self.fail(items[name], f"{name}: has no meaning beside shape, which names its own lengths")
        own = self.options({name: value for name, value in items.items() if name in OPTIONS})
        value = self.text(items[source], source)
        if source == "hf_config":
            value = self.path(items[source], value)
        merged = {name: value for name, value in {**defaults, **own}.items() if name in allowed}
        return PlanEntry(source, value, cast(Options, merged), self.place(items[source]))

    def path(self, node: yaml.Node, value: str) -> str:
        """A relative path is relative to the plan, wherever the command runs."""
        if value.startswith("~") or Path(value).is_absolute():
            return value
        if self.folder is None:
            raise self.fail(node, f"hf_config: got {value!r}, expected an absolute path, as the plan has no folder")
        return str(self.folder / value)

    def mapping(self, node: yaml.Node, what: str, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what}: expected a mapping of names to values")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in known:
                raise self.fail(key, f"unknown name {name!r} in {what}, expected one of {', '.join(known)}")
            if name in found:
                raise self.fail(key, f"{name!r} is given twice in {what}")
            found[name] = value
        return found

    def options(self, items: dict[str, yaml.Node]) -> dict[str, Any]:
        return {name: self.option(name, node) for name, node in items.items()}

    def option(self, name: str, node: yaml.Node) -> Any:
        if name in FLAGS:
            if not _is_plain(node) or node.value.lower() not in BOOLEANS:
                raise self.fail(node, f"{name}: expected true or false")
            return BOOLEANS[node.value.lower()]
        if name == "dtype":
            try:
                return dtype_name(self.text(node, name))
            except PlanError as error:
                raise self.fail(node, str(error)) from None
        if name == "phases":
            return [self.phase(item) for item in node.value] if _is_list(node) else [self.phase(node)]
        if name in LISTS and _is_list(node):
            return [self.integer(item, name) for item in node.value]
        return self.integer(node, name)

    def phase(self, node: yaml.Node) -> str:
        name = self.text(node, "phases")
        if name not in PHASES:
            raise self.fail(node, f"phases: got {name!r}, expected {', '.join(PHASES)}")
        return name

    def integer(self, node: yaml.Node, name: str) -> int:
        if not _is_plain(node) or not INTEGER.fullmatch(node.value):
            got = f"got {node.value!r}, " if isinstance(node, yaml.ScalarNode) else ""
            raise self.fail(node, f"{name}: {got}expected a whole number of at least 1")
        value = int(node.value)
        if value < 1:
            raise self.fail(node, f"{name}: got {value}, expected a whole number of at least 1")
        return value

    def text(self, node: yaml.Node, name: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value or node.tag != "tag:yaml.org,2002:str":
            raise self.fail(node, f"{name}: expected text")
        return str(node.value)


def _is_plain(node: yaml.Node) -> bool:
    """Whether it is one word or number without quotes."""
    return isinstance(node, yaml.ScalarNode) and not node.style


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)
