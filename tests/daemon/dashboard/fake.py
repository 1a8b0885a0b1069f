"""A server that gives the page's files with the daemon's headers, and answers that a test may change at any time."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import faops.daemon
from tests.daemon.dashboard import samples

FILES = Path(faops.daemon.__file__).parent / "http" / "dashboard"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"

Answer = tuple[int, Any]


@dataclass
class Fake:
    """``trouble`` is "" while the daemon is well, "gone" (it hangs up) or "slow" (it never answers)."""

    status: dict[str, Any] = field(default_factory=samples.status)
    queue: list[dict[str, Any]] = field(default_factory=list)
    aside: list[dict[str, Any]] = field(default_factory=list)
    winners: list[dict[str, Any]] = field(default_factory=list)
    heat_map: str = "<h3>Tile space</h3>"
    token: str = ""
    trouble: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)  # by "GET /path": in the place of the usual ones
    asked: list[tuple[str, Any]] = field(default_factory=list)  # "GET /path" and the body of each request to the API
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Forgets everything but where it is served."""
        for name, value in vars(Fake(url=self.url)).items():
            setattr(self, name, value)

    def times(self, start: str) -> int:
        """How many requests began so, as "GET /v1/status"."""
        return sum(what.startswith(start) for what, _ in self.asked)

    def bodies(self, what: str) -> list[Any]:
        """The bodies of the requests of that method and path."""
        return [body for asked, body in self.asked if asked == what]

    def answer(self, method: str, target: str) -> Answer:
        parts = urlsplit(target)
        what = f"{method} {parts.path}"
        if what in self.answers:
            return self.answers[what]
        limit = int(parse_qs(parts.query).get("limit", ["100"])[0])
        waiting = "state=waiting" in parts.query
        usual: dict[str, Any] = {
            "GET /v1/status": self.status,
            "GET /v1/jobs": {"jobs": (self.queue if waiting else self.aside)[:limit], "next": None},
            "GET /v1/winners": {"winners": self.winners[:limit]},
            "GET /metrics": "faops_queue_depth 3",
            "POST /v1/pause": self.status,
            "POST /v1/resume": self.status,
        }
        if what.endswith("/heat-map"):
            return 200, self.heat_map
        if what in usual:
            return 200, usual[what]
        return (200, samples.job(1)) if what.startswith(("DELETE /v1/jobs/", "POST /v1/jobs/")) else (404, {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        file = FILES / ("index.html" if path == "/" else path[1:])
        if file.parent == FILES and file.is_file():
            return self._send(200, file.read_bytes(), TYPES[file.suffix])
        return self._api()

    def do_POST(self) -> None:
        self._api()

    def do_DELETE(self) -> None:
        self._api()

    def _api(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.fake.asked.append((f"{self.command} {self.path}", json.loads(raw) if raw else None))
        if self.fake.trouble == "slow":
            self.fake.released.wait(60)
        if self.fake.trouble:
            self.close_connection = True
            return
        known = not self.fake.token or self.headers.get("Authorization") == f"Bearer {self.fake.token}"
        code, value = self.fake.answer(self.command, self.path) if known else (401, {"detail": "got no token"})
        text = value if isinstance(value, str) else json.dumps(value)
        self._send(code, text.encode(), "application/json")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser may hang up at any time."""


def serve(fake: Fake) -> Server:
    """Begins to serve; the caller shuts the server down."""
    server = Server(("127.0.0.1", 0), type("OneHandler", (Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
