"""Compiled kernels of the emulator, kept under ``<cache>/emulator/v1``: shared objects, or programs for a sanitizer.

A file's name is a hash of all that decides its contents. Of the processes that want the same file one compiles it and
the others wait; the files used least recently make room for new ones.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faops import settings
from faops.architectures import MIB
from faops.backends.cuda_raw.emulator import compiler
from faops.backends.cuda_raw.emulator.compiler import MODES, Compiler, Mode
from faops.backends.cuda_raw.emulator.errors import EmulatorError
from faops.backends.cuda_raw.source import Source
from faops.errors import ArgumentError

LAYOUT = "v1"
CSRC = Path(__file__).parent / "csrc"
LIMIT_BYTES = 512 * MIB
KEEP_SECONDS = 600.0  # a file used this recently may be about to be loaded
LOCK_SECONDS = 600.0
WRAPPERS = "ptx.cuh"  # the one header that is not the kernel's own


def build(source: Source, arch: str, mode: str = "run") -> Path:
    """The file that runs ``source`` for ``arch`` ("sm_80") in ``mode`` ("run", "counters", "thread", "address").

    Raises EmulatorError where there is no compiler, the source does not compile or the cache cannot be written.
    """
    found = compiler.find()
    chosen = _mode(mode)
    number = _arch_number(arch)
    key = _key(source.digest(), found.identity, mode, str(number), _own_digest())
    path = directory() / f"{key}{'' if chosen.process else '.so'}"
    if _used(path):
        return path
    runtime = _runtime(found, mode)
    with _making(path) as scratch:
        if scratch is not None:
            _compile_kernel(found, chosen, source, number, runtime, scratch)
    return path


def build_many(sources: Sequence[Source], arch: str, mode: str = "run", jobs: int = 2) -> list[Path]:
    """:func:`build` of every source, ``jobs`` at a time."""
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        return list(pool.map(lambda source: build(source, arch, mode), sources))


def directory() -> Path:
    """Where compiled kernels are kept; it may not exist yet."""
    return settings.cache_root() / "emulator" / LAYOUT


def _mode(mode: str) -> Mode:
    if mode not in MODES:
        raise ArgumentError("mode", repr(mode), f"one of {', '.join(MODES)}")
    return MODES[mode]


def _arch_number(arch: str) -> int:
    match = re.fullmatch(r"sm_(\d{2,3})a?", arch)
    if not match:
        raise ArgumentError("arch", repr(arch), 'an NVIDIA architecture such as "sm_80"')
    return int(match[1]) * 10


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


@functools.cache
def _own_digest() -> str:
    """Of the emulator's sources and of how it calls the compiler."""
    digest = hashlib.sha256()
    for file in (*sorted(CSRC.iterdir()), Path(__file__), Path(compiler.__file__)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _runtime(found: Compiler, mode: str) -> Path:
    """The runtime's object for a mode."""
    path = directory() / f"{_key('runtime', found.identity, mode, _own_digest())}.o"
    if _used(path):
        return path
    with _making(path) as scratch:
        if scratch is not None:
            flags = [*compiler.COMMON, *MODES[mode].runtime_flags]
            main = "main.cpp" if MODES[mode].process else "runtime.cpp"
            found.run([*flags, "-c", str(CSRC / main), "-o", str(scratch / "result")], "the emulator's runtime")
    return path


def _compile_kernel(found: Compiler, mode: Mode, source: Source, number: int, runtime: Path, scratch: Path) -> None:
    main = f"{source.name}.cu"
    for name, text in ((main, source.text), *source.headers):
        if name != WRAPPERS:
            (scratch / name).write_text(text, encoding="utf-8")
    arguments = [
        *compiler.COMMON,
        *mode.kernel_flags,
        *mode.link_flags,
        f"-D__CUDA_ARCH__={number}",
        f'-DKERNEL_FILE="{main}"',
        f"-DKERNEL_ENTRY={source.entry}",
        f"-ffile-prefix-map={scratch}/=",
        "-w",
        f"-I{scratch}",
        f"-I{CSRC}",
        str(CSRC / "kernel.cpp"),
        str(runtime),
        "-lm",
        "-o",
        str(scratch / "result"),
    ]
    found.run(arguments, f"{source.name} for the emulator")


# ---------------------------------------------------------------------------------------------- files


def _used(path: Path) -> bool:
    """Whether the file is there; it then counts as used now."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _making(path: Path) -> Iterator[Path | None]:
    """A scratch directory whose file "result" becomes ``path``; None where another process has just made it."""
    import filelock

    scratch = None
    try:
        (path.parent / "locks").mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / "locks" / f"{path.name[:2]}.lock", timeout=LOCK_SECONDS):
            if _used(path):
                yield None
                return
            scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=path.parent))
            yield scratch
            result = scratch / "result"
            with open(result, "rb") as file:
                os.fsync(file.fileno())
            os.replace(result, path)
        _prune(path.parent)
    except OSError as error:
        raise EmulatorError(f"the emulator's kernels cannot be kept in {path.parent}: {error}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _prune(folder: Path) -> None:
    """Remove the files used least recently until the rest fit, and what killed processes left."""
    now = time.time()
    files = []
    for item in os.scandir(folder):
        with contextlib.suppress(OSError):  # removed by another process meanwhile
            status = item.stat()
            if item.is_file():
                files.append((status.st_mtime, status.st_size, item.path))
            elif item.name.startswith(".making-") and now - status.st_mtime > 10 * KEEP_SECONDS:
                shutil.rmtree(item.path, ignore_errors=True)
    total = sum(size for _, size, _ in files)
    for used, size, name in sorted(files):
        if total <= LIMIT_BYTES or now - used < KEEP_SECONDS:
            return
        with contextlib.suppress(OSError):
            os.unlink(name)
        total -= size
