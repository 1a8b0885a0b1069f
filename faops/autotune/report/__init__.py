"""Reports of tuned entries, to be looked at: a page of HTML, or a picture.

The format is chosen by the file's suffix. A page needs nothing but a browser; a picture needs matplotlib
(``pip install 'faops[plot]'``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from faops import registry
from faops.autotune.cache.entry import Entry
from faops.autotune.report.grid import Legal
from faops.device import DeviceProfile
from faops.errors import ArgumentError, TuningError
from faops.files import TEMPORARY_SUFFIX, write_whole

PAGES = (".html", ".htm")
PICTURES = (".png",)
MOST_IN_A_PICTURE = 60  # problems; a page has no limit


def check_path(path: Path) -> None:
    """Find out whether a report can be written to ``path``, before hours are spent on what is to be in it.

    Raises ArgumentError for a path that cannot be written, and for a suffix that is no format; TuningError when the
    format needs a package that is not installed.
    """
    if path.suffix.lower() not in PAGES + PICTURES:
        raise ArgumentError("report", f"'{path}'", "a file that ends in .html or .png")
    if path.suffix.lower() in PICTURES and importlib.util.find_spec("matplotlib") is None:
        raise TuningError("a report as .png needs matplotlib: pip install 'faops[plot]'; one as .html does not")
    if path.is_dir():
        raise ArgumentError("report", f"'{path}', a directory", "the name of a file")
    probe = _temporary(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ArgumentError("report", f"'{path}'", f"a file that can be written ({error.strerror or error})") from None


def write(
    entries: Sequence[Entry],
    path: Path,
    profiles: Sequence[DeviceProfile] = (),
    notes: Sequence[tuple[str, str]] = (),
) -> None:
    """Write a report of ``entries`` to ``path``: all of it or nothing.

    Of entries made on a device among ``profiles``, configs that exist and were not timed are shown as such. ``notes``
    are problems without an entry, each with what became of it. Raises as :func:`check_path` does, and TuningError for a
    picture of no problem or of more than MOST_IN_A_PICTURE.
    """
    check_path(path)
    legal = [legal_configs(entry, profiles) for entry in entries]
    try:
        if path.suffix.lower() in PAGES:
            from faops.autotune.report.page import page

            write_whole(path, page(entries, legal, notes))
        else:
            _write_picture(entries, legal, path)
    except OSError as error:
        raise TuningError(f"the report {path} cannot be written: {error.strerror or error}") from None


def legal_configs(entry: Entry, profiles: Sequence[DeviceProfile]) -> Legal:
    """Every config of every kernel that was timed, where the device the entry was made on is among ``profiles``."""
    profile = next((profile for profile in profiles if profile.identity == entry.device), None)
    if profile is None:
        return {}
    problem = entry.attention_problem()
    kernels = [registry.get(name) for name in {timing.kernel for timing in entry.timings}]
    return {
        kernel.id: kernel.configs(problem, profile)
        for kernel in kernels
        if kernel is not None and kernel.check(problem, profile)
    }


def _write_picture(entries: Sequence[Entry], legal: Sequence[Legal], path: Path) -> None:
    if not entries:
        raise TuningError(f"no problem is tuned, and there is nothing to draw in {path}")
    if len(entries) > MOST_IN_A_PICTURE:
        raise TuningError(
            f"{len(entries)} problems do not fit into one picture, {MOST_IN_A_PICTURE} do; name a file ending in .html"
        )
    from faops.autotune.report.picture import draw

    temporary = _temporary(path)
    try:
        draw(entries, legal, temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
