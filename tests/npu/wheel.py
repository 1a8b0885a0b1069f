"""Compares the recorded operator schemas with those in a wheel of torch-npu, which is read and never imported.

    python -m tests.npu.wheel                     download the newest wheel and compare
    python -m tests.npu.wheel --version 2.6.0     download that version; --all: every recorded one
    python -m tests.npu.wheel torch_npu-*.whl     compare wheels that are there already

Exits with 1 if a recorded version has other schemas than recorded. A version that is not recorded is compared with the
newest recorded one, and what is new, changed or gone there is told, without failing.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.npu.double.schemas import OPERATORS, VERSIONS, recorded

LIBRARY = "libtorch_npu.so"
# The strings given to m.def() end with a zero byte. Overloads have a dot behind the name and are left out.
_SCHEMA = re.compile(rb"(?<![\w.])(npu_[a-z0-9_]+)(\([A-Z][^\x00\n]*\) -> [^\x00\n]+)")
# The wheels for the oldest Python and the usual machine: the schemas are the same in all of them.
_TAGS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")


@dataclass(frozen=True)
class Difference:
    operator: str
    what: str  # "new", "changed" or "missing"
    here: str  # the wheel's schema
    there: str  # the recorded one


class WheelError(Exception):
    """A file that is no wheel of torch-npu, or one that cannot be had."""


def schemas_of(wheel: Path) -> dict[str, str]:
    """Operator to schema of all the operators in a wheel, not only of those recorded."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            libraries = [name for name in archive.namelist() if name.endswith(f"/{LIBRARY}")]
            if not libraries:
                raise WheelError(f"{wheel.name}: there is no {LIBRARY} in it")
            code = archive.read(libraries[0])
    except (OSError, zipfile.BadZipFile) as error:
        raise WheelError(f"{wheel}: {error}") from error
    return {name.decode(): (name + rest).decode() for name, rest in _SCHEMA.findall(code)}


def version_of(wheel: Path) -> str:
    """The version in a wheel's name."""
    parts = wheel.name.split("-")
    if len(parts) < 5 or parts[0].replace("-", "_").lower() != "torch_npu":
        raise WheelError(f"{wheel.name}: not a wheel of torch-npu")
    return parts[1]


def compare(found: dict[str, str], version: str) -> Iterator[Difference]:
    """How the operators that faops considers differ from the record of ``version``."""
    known = recorded(version)
    for operator in OPERATORS:
        here, there = found.get(operator, ""), known.get(operator, "")
        if here != there:
            yield Difference(operator, "new" if not there else "missing" if not here else "changed", here, there)


def download(version: str, folder: Path) -> Path:
    """The wheel of ``version``, or the newest one for "", without what it depends on."""
    wanted = f"torch-npu=={version}" if version else "torch-npu"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check",
               "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(folder)]  # fmt: skip
    command += [argument for tag in _TAGS for argument in ("--platform", tag)]
    result = subprocess.run([*command, wanted], capture_output=True, text=True)
    wheels = sorted(folder.glob("torch_npu-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    if result.returncode or not wheels:
        raise WheelError(f"{wanted} cannot be downloaded: {result.stderr.strip() or 'pip brought nothing'}")
    return wheels[-1]


def check(wheel: Path) -> bool:
    """Tell how a wheel compares; whether it does not contradict the record."""
    version = version_of(wheel)
    is_recorded = version in VERSIONS
    against = version if is_recorded else VERSIONS[-1]
    differences = list(compare(schemas_of(wheel), against))
    same = len(OPERATORS) - len(differences)
    words = "as recorded" if is_recorded else f"not recorded; against {against}"
    print(f"torch_npu {version:<14} {same:>2} of {len(OPERATORS)} operators the same ({words})")
    for difference in differences:
        print(f"  {difference.what:<8} {difference.operator}")
        for label, schema in (("wheel", difference.here), ("record", difference.there)):
            if schema:
                print(f"    {label:<7} {schema}")
    return not (is_recorded and differences)


def _checked(wheels: Iterable[Path]) -> bool:
    """Tell of every wheel, whatever the first one says."""
    return not [wheel for wheel in wheels if not check(wheel)]


def _downloaded(versions: Iterable[str]) -> bool:
    good = True
    for version in versions:  # one at a time: a wheel has some forty megabytes
        with tempfile.TemporaryDirectory() as folder:
            good = check(download(version, Path(folder))) and good
    return good


def _full(asked: str) -> str:
    """A recorded version from what it begins with: "2.6.0" is "2.6.0.post5"."""
    return next((version for version in VERSIONS if version == asked or version.startswith(f"{asked}.")), asked)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.npu.wheel", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheels", nargs="*", type=Path, help="wheels to read; none: the newest is downloaded")
    parser.add_argument("--version", action="append", default=[], help="download this version of torch-npu")
    parser.add_argument("--all", action="store_true", help="download every recorded version")
    given = parser.parse_args(arguments)
    versions = [_full(asked) for asked in given.version]
    try:
        if given.wheels:
            good = _checked(given.wheels)
        else:
            good = _downloaded(VERSIONS if given.all else versions or [""])
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
