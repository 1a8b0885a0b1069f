"""Reads the reports of ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import PurePath

from faops.backends.cuda_raw.emulator.errors import FaultError, RaceError, UndefinedError

SANITIZER_ENVIRONMENT = {
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:history_size=4",
    "ASAN_OPTIONS": "halt_on_error=1:exitcode=67:detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=67:print_stacktrace=1",
}
GLUE = "kernel.cpp"  # calls the kernel: frames from there on are the emulator's
WRAPPERS = "ptx.cuh"

_IS_FRAME = re.compile(r"^\s+#\d+ ")
_FRAME = re.compile(
    r"^\s+#\d+ (?:0x[0-9a-f]+ in )?(?P<function>.+?) (?P<file>\S+?):(?P<line>\d+)(?::\d+)?(?: \(.*\))?$"
)
_ACCESS = re.compile(
    r"^  (?:Previous )?(?P<how>(?:atomic )?(?:read|write)) of size (?P<bytes>\d+) at 0x[0-9a-f]+ by "
    r"(?:thread (?P<thread>T\d+)|main thread)",
    re.IGNORECASE,
)
_NAME = re.compile(r"^  Thread (?P<thread>T\d+) '(?P<name>[^']*)'")
_UNDEFINED = re.compile(r"^(?P<file>\S+?):(?P<line>\d+):\d+: runtime error: (?P<text>.*)$")
_ADDRESS = re.compile(r"^==\d+==ERROR: AddressSanitizer: (?P<text>.*)$")


def fault_of(report: str) -> FaultError | None:
    """The first fault in what a sanitizer printed, with places in the kernel's sources; None where there is none."""
    lines = report.splitlines()
    if any("ThreadSanitizer: data race" in line for line in lines):
        return RaceError(_race(lines))
    for index, line in enumerate(lines):
        if found := _UNDEFINED.match(line):
            where = _places(lines[index + 1 :]) or f"{PurePath(found['file']).name}:{found['line']}"
            return UndefinedError(f"{found['text']}, at {where}")
        if found := _ADDRESS.match(line):
            return UndefinedError(
                f"{found['text'].split(' at pc')[0]}, at {_places(lines[index + 1 :]) or 'no known place'}"
            )
    return None


def _race(lines: list[str]) -> str:
    names = {found["thread"]: found["name"] for line in lines if (found := _NAME.match(line))}
    accesses = []
    for index, line in enumerate(lines):
        if found := _ACCESS.match(line):
            who = names.get(found["thread"] or "", "the emulator")
            where = _places(lines[index + 1 :]) or "a place the sanitizer no longer knows"
            accesses.append(f"{who}: {found['how'].lower()} of {found['bytes']} bytes by {where}")
    return f"race, no barrier orders {' and '.join(accesses)}"


def _places(lines: list[str]) -> str:
    """The chain of calls that starts in the next lines: the wrapper, then where it was called, innermost first."""
    wrapper, places = "", []
    for frame in _frames(lines):
        if frame["file"].endswith(GLUE):
            break
        if frame["file"].endswith(WRAPPERS):
            wrapper = re.sub(r"<[^>]*>", "", frame["function"].split("(")[0]).split()[-1] + " at "
        else:
            places.append(f"{PurePath(frame['file']).name}:{frame['line']}")
    return wrapper + ", called from ".join(places) if places else ""


def _frames(lines: list[str]) -> Iterator[re.Match[str]]:
    """The frames of the first stack in ``lines``, those without a source line left out."""
    start = next((index for index, line in enumerate(lines) if _IS_FRAME.match(line)), len(lines))
    for line in itertools.takewhile(_IS_FRAME.match, lines[start:]):
        if found := _FRAME.match(line):
            yield found
