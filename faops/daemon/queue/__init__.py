"""The jobs of the daemon, kept on disk: what is acknowledged outlives the end of the process, whatever ends it."""

from __future__ import annotations

from faops.daemon.queue.errors import BacklogError, FullError, TransitionError, UnknownError
from faops.daemon.queue.pause import Pause
from faops.daemon.queue.queue import Queue

__all__ = ["BacklogError", "FullError", "Pause", "Queue", "TransitionError", "UnknownError"]
