"""The worker's end of its connection to the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
from typing import Any

from faops import processes

Json = dict[str, Any]


class Connection:
    """Requests that come, answers that go, and leave to measure. Listens in a thread of its own."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        self._serial = 0  # of the request under way
        self._may_go = threading.Event()
        self._may_go.set()
        self._leaving = False

    def listen(self) -> None:
        """Begin to take what comes. When nothing more can come, the process ends with all that it has started."""
        threading.Thread(target=self._listen, name="connection", daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._channel.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
        leave()

    def _take(self, request: Json) -> None:
        if request["do"] == "pause":
            self._may_go.clear()
        elif request["do"] == "go":
            self._may_go.set()
        elif request["do"] == "exit":
            self._leaving = True
            self._may_go.set()
            self._requests.put(None)
        else:
            self._requests.put(request)

    def next(self) -> Json | None:
        """The next request; None when told to end."""
        request = self._requests.get()
        self._serial = 0 if request is None else request["serial"]
        return request

    def send(self, answer: Json) -> None:
        """Send one line. Where the daemon is gone, this process soon is."""
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(answer).encode() + b"\n")

    def tell(self, event: Json) -> None:
        """Tell of the request under way."""
        self.send({"serial": self._serial, "event": event})

    def wait_for_leave(self) -> None:
        """Until nothing keeps this process from measuring. Raises SystemExit when told to end."""
        self._may_go.wait()
        if self._leaving:
            raise SystemExit(0)


def leave() -> None:
    """End this process with all that it has started, at once: torch and drivers would take their time, and some crash
    meanwhile."""
    processes.end(processes.descendants(os.getpid()))
    os._exit(0)
