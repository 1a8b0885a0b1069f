"""Group settings: faops.yaml and the FAOPS_* variables make sense."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from faops import registry, settings
from faops.doctor.check import Check, Result, fail, ok, warn
from faops.errors import SettingsError

GROUP = "settings"
# Variables that are no settings: where faops.yaml is, and whether the command line prints tracebacks.
OTHER_VARIABLES = ("FAOPS_CONFIG", "FAOPS_DEBUG")


def checks() -> list[Check]:
    return [
        Check("settings.values", GROUP, "every setting in faops.yaml and the environment can be read", check_values),
        Check("settings.variables", GROUP, "every FAOPS_* variable is known", check_variables),
        Check("settings.backend", GROUP, "the backend that the settings force exists", check_backend),
    ]


def check_values() -> Result:
    path = settings.config_path()
    for name in settings.SETTINGS:
        try:
            settings.resolve(name)
        except SettingsError as error:
            variable = settings.SETTINGS[name].variable
            if variable in os.environ:
                return fail(str(error), fix=f"unset {variable}")
            return fail(str(error), *_wrong_lines(path), fix=f"edit '{path}' (faops config shows the settings)")
    if path.is_file():
        return ok(f"{path} is read")
    return ok(f"no {path}, so the defaults and the environment count")


def _wrong_lines(path: Path) -> Iterator[str]:
    """The lines of faops.yaml that name no setting, or give one a value that it cannot have."""
    for number, name, value in _lines(path):
        setting = settings.SETTINGS.get(name)
        if setting is None:
            close = difflib.get_close_matches(name, settings.SETTINGS, 1)
            yield f"line {number}: {name}" + (f": did you mean {close[0]}?" if close else "")
            continue
        try:
            setting.parse(value)
        except ValueError as error:
            yield f"line {number}: {name}: {value}: {error}"


def _lines(path: Path) -> list[tuple[int, str, str]]:
    """Line, counted from 1, name and value of every setting in the file; [] where it is no list of settings."""
    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [(key.start_mark.line + 1, str(key.value), str(value.value)) for key, value in pairs]


def check_variables() -> Result:
    known = [*(setting.variable for setting in settings.SETTINGS.values()), *OTHER_VARIABLES]
    unknown = sorted(name for name in os.environ if name.startswith("FAOPS_") and name not in known)
    if not unknown:
        found = sorted(name for name in known if name in os.environ)
        return ok(f"in the environment: {', '.join(found) or 'none'}")
    details = [
        f"{name}: did you mean {close[0]}?" for name in unknown if (close := difflib.get_close_matches(name, known, 1))
    ]
    return warn(f"faops does not know {', '.join(unknown)}", *details, fix=f"unset {' '.join(unknown)}")


def check_backend() -> Result:
    try:
        value = settings.resolve("backend")
    except SettingsError as error:
        return fail(str(error), fix="faops doctor settings.values")
    name = str(value.value)
    if not name:
        return ok("no backend is forced; faops chooses")
    if any(kernel.matches(name) for kernel in registry.kernels()):
        return ok(f"{name} is forced by the {value.source}", "every call that it cannot run is refused")
    where = "unset FAOPS_BACKEND" if value.source == "environment" else f"edit '{settings.config_path()}'"
    return fail(f"backend {name!r} is forced by the {value.source}, but there is none of that name",
                f"there are {', '.join(registry.backends())}", fix=where)  # fmt: skip
