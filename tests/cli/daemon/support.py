"""A daemon that is none: it answers on the daemon's socket with what a test has put there."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Data = dict[str, Any]
Answer = tuple[int, Data]


class FakeDaemon:
    """Answers by ``answers``: "GET /v1/status" -> a body, a status with a body, or a function of the request's body.

    ``requests`` holds all that was asked: method with path and query, and the body.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"GET /v1/status": status(), "GET /v1/jobs": {"jobs": [], "next": None}}
        self.requests: list[tuple[str, Any]] = []

    def answer(self, method: str, target: str, body: Any) -> Answer:
        self.requests.append((f"{method} {target}", body))
        found = self.answers.get(f"{method} {target}", self.answers.get(f"{method} {urlsplit(target).path}"))
        if callable(found):
            found = found(body)
        if found is None:
            return 404, {"title": "Not Found", "status": 404, "detail": f"there is no {target}"}
        return found if isinstance(found, tuple) else (200, found)

    def asked(self, begin: str) -> list[Any]:
        """Bodies of the requests whose method and path begin so."""
        return [body for name, body in self.requests if name.startswith(begin)]


class _Handler(BaseHTTPRequestHandler):
    daemon: FakeDaemon
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(size)
        code, body = self.daemon.answer(self.command, self.path, json.loads(text) if text else None)
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/problem+json" if code >= 400 else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def served(daemon: FakeDaemon, path: Path) -> Iterator[FakeDaemon]:
    """The fake listens on a socket at ``path`` meanwhile."""
    handler = type("Handler", (_Handler,), {"daemon": daemon})
    with _Server(str(path), handler) as server:
        path.chmod(0o600)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield daemon
        finally:
            server.shutdown()
            thread.join(30)
    path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ what a daemon answers


def status(**changed: Any) -> Data:
    counts = {"waiting": 0, "running": 0, "done": 12, "quarantined": 0, "cancelled": 0}
    usual = {
        "version": "0.1.0",
        "pid": 4711,
        "started": "2026-01-31T11:00:00.000Z",
        "uptime_seconds": 7500.0,
        "state": "idle",
        "paused": None,
        "jobs": counts,
        "memory_bytes": 50 * 2**20,
        "http": None,
        "devices": [device()],
        "running": [],
        "totals": {"tuned": 12, "won": 5, "seconds_tuning": 372.5, "rejected_samples": 40, "errors": 0},
        "settings": {},
    }
    return {**usual, **changed, "jobs": {**counts, **changed.get("jobs", {})}}


def device(**gate: Any) -> Data:
    usual = {"open": True, "reason": "idle for 40 s", "idle_seconds": 40.0, "figures": {}}
    return {
        "device": "cpu",
        "name": "Xeon",
        "identity": "cpu_xeon_2t",
        "gate": {**usual, **gate},
        "worker": None,
        "waiting": 0 if gate.get("open", True) else 2,
    }


def job(number: int = 17, state: str = "waiting", **changed: Any) -> Data:
    usual = {
        "id": number,
        "device": "cpu",
        "identity": "cpu_xeon_2t",
        "key": "forward/dense/float32/b1/q512",
        "problem": f"forward float32 b1 {number}x512 h8/8 d64 causal",
        "shape": {"op": "forward"},
        "source": "miss",
        "state": state,
        "hits": 4096,
        "priority": 17.6,
        "forced": False,
        "attempts": 0,
        "not_before": None,
        "created": "2026-01-31T12:00:00.000Z",
        "begun": None,
        "finished": None,
        "message": "",
        "call_seconds": 0.0043,
        "tuning_seconds": 30.0,
        "has_heat_map": False,
        "result": result() if state == "done" else None,
    }
    return {**usual, **changed}


def result(**changed: Any) -> Data:
    usual = {
        "status": "tuned",
        "message": "",
        "measurements": 59,
        "seconds": 31.0,
        "kernel": "torch.blockwise_forward",
        "config": {"block_q": 64, "block_k": 512},
        "p50": 0.0035,
        "default_kernel": "torch.sdpa_forward",
        "default_config": {"threads": 0},
        "default_p50": 0.0043,
        "speedup": 1.23,
        "is_default": False,
        "rejected": 0,
        "path": "/somewhere/entry.json",
    }
    return {**usual, **changed}


def running(**changed: Any) -> Data:
    usual = {
        "job": job(17, "running"),
        "done": 12,
        "planned": 59,
        "best_seconds": 0.0035,
        "doing": "timed torch.blockwise_forward",
        "elapsed_seconds": 21.0,
        "remaining_seconds": 40.0,
        "yielding": False,
    }
    return {**usual, **changed}


def refusal(code: int, detail: str) -> Answer:
    return code, {"title": "Refused", "status": code, "detail": detail}


def by_state(jobs: list[Data]) -> Callable[[], dict[str, Data]]:
    """Answers of ``GET /v1/jobs`` for one state each."""
    states = ("running", "waiting", "quarantined", "done", "cancelled")
    return lambda: {state: {"jobs": [one for one in jobs if one["state"] == state], "next": None} for state in states}
