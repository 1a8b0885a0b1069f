"""Compiled kernels, kept between runs: one file each, under ``<cache>/cubins/v1``.

Of the processes that want the same kernel one compiles it and the others wait. Reading never raises: a file that is
missing, unreadable, truncated or changed is a miss. A directory that cannot be written costs a warning and the time to
compile, no more. The files used least recently make room for new ones.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from faops import settings
from faops.architectures import MIB
from faops.backends.cuda_raw import nvrtc
from faops.backends.cuda_raw.nvrtc import Compiled
from faops.backends.cuda_raw.source import Source
from faops.backends.cuda_raw.targets import Target
from faops.errors import CacheError, FaopsWarning
from faops.files import TEMPORARY_SUFFIX, write_whole

LAYOUT = "v1"  # of the directory and its files
SUFFIX = ".cubin.txt"
MEMO_SIZE = 512  # kernels kept in memory
LOCK_SECONDS = 60.0  # several times what the largest kernel takes to compile
LEFTOVER_SECONDS = 3600.0  # a temporary file older than this belongs to a process that was killed

ELSEWHERE = ("image", "target", "from_cache")  # fields of Compiled that are not among a file's figures


def compile_cached(source: Source, target: Target) -> Compiled:
    """``source`` compiled for ``target``: from memory, else from disk, else by NVRTC. Raises CompileError."""
    return _memoised(source, target)


@functools.lru_cache(maxsize=MEMO_SIZE)
def _memoised(source: Source, target: Target) -> Compiled:
    key = key_of(source, target)
    path = directory() / f"{key}{SUFFIX}"
    if (found := _read(path)) is not None:
        return found
    limit = limit_bytes()
    if limit == 0:
        return nvrtc.compile(source, target)
    with _alone(path.parent / "locks" / f"{key[:2]}.lock"):
        if (found := _read(path)) is not None:
            return found
        compiled = nvrtc.compile(source, target)
        _store(path, source, compiled)
    with contextlib.suppress(OSError, CacheError):
        prune(limit)
    return compiled


def forget() -> None:
    """Drop what is kept in memory; the files stay."""
    _memoised.cache_clear()


def key_of(source: Source, target: Target) -> str:
    """Name of a compiled kernel: a hash of all that decides its code."""
    parts = (source.digest(), *nvrtc.options(target), str(target), nvrtc.version_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def directory() -> Path:
    """Where compiled kernels are kept; it may not exist yet."""
    return settings.cache_root() / "cubins" / LAYOUT


def limit_bytes() -> int:
    """Bytes that all files together may take."""
    return int(settings.get("cubin_cache_mb")) * MIB


# ---------------------------------------------------------------------------------------------- one file


def _store(path: Path, source: Source, compiled: Compiled) -> None:
    """Write a file; where that cannot be done, warn once a directory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _written(source, compiled))
    except OSError as error:
        _warn_once(path.parent, str(error.strerror or error))


@functools.lru_cache(maxsize=64)
def _warn_once(directory: Path, reason: str) -> None:
    text = (
        f"compiled kernels cannot be kept in {directory}: {reason}; every process compiles them again "
        "(FAOPS_CACHE_DIR names another directory)"
    )
    warnings.warn(text, FaopsWarning, stacklevel=2)


def _written(source: Source, compiled: Compiled) -> str:
    """Three lines: a hash of the two that follow, what the kernel is, and its image in base 64."""
    about = {
        "name": source.name,
        "target": str(compiled.target),
        "nvrtc": nvrtc.version_text(),
        "specialization": _specialization(source),
        "date": time.strftime("%Y-%m-%d"),
        "image_bytes": len(compiled.image),
        "figures": {name: getattr(compiled, name) for name in _figure_names()},
    }
    content = f"{json.dumps(about)}\n{base64.b64encode(compiled.image).decode()}\n"
    return f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}"


def _figure_names() -> list[str]:
    return [field.name for field in fields(Compiled) if field.name not in ELSEWHERE]


def _specialization(source: Source) -> dict[str, str]:
    """The constants that the kernel was specialised for."""
    text = dict(source.headers).get("specialization.cuh", "")
    return dict(re.findall(r"^constexpr \w+ (\w+) = (\S+);", text, re.MULTILINE))


def _read(path: Path) -> Compiled | None:
    """The kernel in a file, which counts as used now; None where there is none, or one that is not whole."""
    try:
        checksum, content = path.read_text(encoding="ascii").split("\n", 1)
        if hashlib.sha256(content.encode()).hexdigest() != checksum:
            return None
        about, image = content.splitlines()
        loaded = json.loads(about)
        compiled = Compiled(
            image=base64.b64decode(image, validate=True),
            target=Target(loaded["target"]),
            from_cache=True,
            **loaded["figures"],
        )
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return compiled


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes and threads waiting; where that is impossible or takes too long, go on with them."""
    import filelock

    with contextlib.ExitStack() as stack:
        # The file system may be read-only (OSError) or know no locks (NotImplementedError), or the wait be too long
        # (OSError again).
        with contextlib.suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(path, timeout=LOCK_SECONDS))
        yield


# ---------------------------------------------------------------------------------------------- all files


@dataclass(frozen=True)
class Entry:
    """A compiled kernel on disk, without its code."""

    name: str
    target: str
    nvrtc: str
    specialization: dict[str, str]
    date: str
    image_bytes: int
    figures: dict[str, Any]  # registers, spill_store_bytes, ... as in Compiled
    file_bytes: int
    path: Path

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        flat = {**asdict(self), **self.figures, "path": str(self.path)}
        return {name: value for name, value in flat.items() if name not in ("figures", "log")}


def entries() -> list[Entry]:
    """All compiled kernels that can be read, by name, target and specialisation."""
    found = [entry for file in _files() if (entry := _entry(file)) is not None]
    return sorted(found, key=lambda entry: (entry.name, entry.target, sorted(entry.specialization.items())))


def usage() -> tuple[int, int]:
    """Number of files, and the bytes they take together."""
    files = _files()
    return len(files), sum(file.size for file in files)


def prune(max_bytes: int) -> tuple[int, int]:
    """Remove the files used least recently until the others take at most ``max_bytes``; 0 removes all.

    Returns the number of files removed and their bytes. Raises CacheError where one cannot be removed.
    """
    files = _files()
    left = sum(file.size for file in files)
    removed = freed = 0
    for file in sorted(files, key=lambda file: file.used):
        if left <= max_bytes:
            break
        _remove(file.path)
        left -= file.size
        removed, freed = removed + 1, freed + file.size
    for leftover in directory().glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
    return removed, freed


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    used: int  # time stamp, nanoseconds


def _files() -> list[_File]:
    """The files there are; none where the directory is missing or cannot be read."""
    found = []
    with contextlib.suppress(OSError), os.scandir(directory()) as items:
        for item in items:
            if item.name.endswith(SUFFIX):
                with contextlib.suppress(OSError):  # removed by another process meanwhile
                    status = item.stat()
                    found.append(_File(Path(item.path), status.st_size, status.st_mtime_ns))
    return found


def _entry(file: _File) -> Entry | None:
    """What a file says of its kernel, without looking at the code."""
    try:
        with open(file.path, encoding="ascii") as lines:
            lines.readline()
            return Entry(**json.loads(lines.readline()), file_bytes=file.size, path=file.path)
    except (OSError, ValueError, TypeError):
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"{path} cannot be removed: {error.strerror or error}") from None
