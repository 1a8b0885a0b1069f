"""Proof that attention is fused: record a program or read a recording, and see what ran.

:func:`record` runs a program under the profiler of the device, :func:`read` reads a file that such a profiler wrote
before, and :func:`analyse` says what either shows. :func:`marks` makes recordings of your own readable. `faops profile`
is the command.
"""

from faops.profile.events import Timeline, TraceError
from faops.profile.ranges import marks
from faops.profile.recording import read, record
from faops.profile.report import Report, analyse

__all__ = ["Report", "Timeline", "TraceError", "analyse", "marks", "read", "record"]
