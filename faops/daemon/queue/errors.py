"""What the queue refuses, so that whoever answers a client can tell one from the other."""

from __future__ import annotations

from faops.errors import DaemonError


class UnknownError(DaemonError):
    """There is no job or submission of this id."""


class TransitionError(DaemonError):
    """The job or submission is not in a state in which this can be done to it."""


class BacklogError(DaemonError):
    """Too many submissions wait already."""


class FullError(DaemonError):
    """The queue's file cannot be read or written, mostly because the disk is full. Nothing was changed."""
