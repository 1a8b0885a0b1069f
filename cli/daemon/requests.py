"""What the API is asked for by the options of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

LARGEST_PLAN = 2**18  # characters; the daemon takes no larger one


def request_of(source: str, value: Any, options: dict[str, Any], device: str | None, force: bool) -> dict[str, Any]:
    """The body of a submission. Raises PlanError for a plan that cannot be read."""
    request: dict[str, Any] = {_FIELDS[source]: _read(source, value)}
    if options:
        request["options"] = {
            "phases" if name == "phase" else name: list(given) if isinstance(given, tuple) else given
            for name, given in options.items()
        }
    if device is not None:
        request["device"] = device
    if force:
        request["force"] = True
    return request


_FIELDS = {"--model": "model", "--hf-config": "hf_config", "--shape": "shapes", "--plan": "plan"}


def _read(source: str, value: Any) -> Any:
    """The daemon runs in another directory: paths are made absolute, and plans sent as text."""
    if source == "--hf-config":
        return str(Path(value).expanduser().absolute())
    return _plan(Path(value)) if source == "--plan" else value


def _plan(path: Path) -> str:
    """Text of a plan file, its paths made absolute. What is wrong in it is for the daemon to say."""
    from faops.errors import PlanError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PlanError(f"plan {path} cannot be read: {reason}") from None
    if len(text) > LARGEST_PLAN:
        raise PlanError(f"plan {path} has {len(text)} characters, expected {LARGEST_PLAN} at most")
    return _with_absolute_paths(text, path.absolute().parent)


def _with_absolute_paths(text: str, folder: Path) -> str:
    """The text with relative paths of config.json files made absolute; every line stays where it is."""
    parts, end = [], 0
    for node in _paths(text):
        if Path(node.value).is_absolute() or node.value.startswith("~"):
            continue
        parts += [text[end : node.start_mark.index], json.dumps(str(folder / node.value))]
        end = node.end_mark.index
    return "".join([*parts, text[end:]])


def _paths(text: str) -> Iterator[yaml.ScalarNode]:
    """Where a plan names config.json files, in the order of the text; nothing in what is no plan."""
    import yaml

    try:
        plan = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return
    for workloads in _values(plan, "workloads"):
        for entry in workloads.value if isinstance(workloads, yaml.SequenceNode) else []:
            for path in _values(entry, "hf_config"):
                if isinstance(path, yaml.ScalarNode):
                    yield path


def _values(node: yaml.Node | None, name: str) -> Iterator[yaml.Node]:
    """The value of a mapping under a name."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        yield from (value for key, value in node.value if key.value == name)
