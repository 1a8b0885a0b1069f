"""A daemon made of a real queue and little else, its application in this process or behind real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import yaml

from faops.daemon.http.app import build
from faops.daemon.http.metrics import Metrics
from faops.daemon.http.pages import DESCRIPTION
from faops.daemon.http.peer import Doorman
from faops.daemon.http.server import Listener, serve_unix
from faops.daemon.jobs import Job, Task
from faops.daemon.queue import Queue
from faops.errors import ArgumentError, DaemonError

DESCRIBED: dict[str, Any] = yaml.load(DESCRIPTION.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
PATIENCE = 30.0  # seconds

RESULT = {
    "status": "tuned", "message": "1.25x over the default", "measurements": 59, "seconds": 31.0, "kernel": "torch.x",
    "config": {"block_q": 64}, "p50": 0.004, "default_kernel": "torch.y", "default_config": {}, "default_p50": 0.005,
    "speedup": 1.25, "is_default": False, "rejected": 3, "path": "/cache/x.json", "heat_map": "<table>é</table>",
}  # fmt: skip


def task(number: int = 1, **changes: Any) -> Task:
    """A task that differs from those of other numbers."""
    facts = {
        "identity": "cpu-1t", "environment": "e", "device": "cpu", "threads": 1, "key": f"key-{number}",
        "problem": {"op": "forward", "sq": number}, "words": f"forward of {number}", "call_seconds": 0.001,
        "tuning_seconds": 20.0,
    }  # fmt: skip
    return Task(**{**facts, **changes})


class FakeControl:
    """What the application sees of a daemon. Notes what it was told in ``told``."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.metrics = Metrics(queue)
        self.stopping = False
        self.trouble = ""
        self.told: list[tuple[Any, ...]] = []
        self.opening: Exception | None = None

    def ready(self) -> tuple[bool, str]:
        return not self.trouble, self.trouble

    def status(self) -> dict[str, Any]:
        paused = self.queue.paused()
        example: dict[str, Any] = DESCRIBED["components"]["schemas"]["Status"]["example"]
        return {
            **example,
            "state": "paused" if paused else "idle",
            "paused": {"reason": paused.reason, "until": None} if paused else None,
            "jobs": self.queue.counts(),
        }

    def pause(self, reason: str, seconds: float | None) -> None:
        self.told.append(("pause", reason, seconds))
        self.queue.set_paused(reason)

    def resume(self) -> None:
        self.told.append(("resume",))
        self.queue.set_paused(None)

    def wake(self) -> None:
        self.told.append(("wake",))

    def cancel(self, job_id: int) -> Job:
        return self.queue.cancel(job_id)

    async def open_http(self, address: str | None) -> str:
        if self.opening:
            raise self.opening
        self.told.append(("open_http", address))
        return f"http://{address or '127.0.0.1:8741'}/#token=t"

    def stop(self) -> None:
        self.told.append(("stop",))


CANNOT_LISTEN = DaemonError("http: 127.0.0.1:80 cannot be listened on: Permission denied")
NO_ADDRESS = ArgumentError("http", "'8.8.8.8:80'", "an address of the loopback")


# -------------------------------------------------------------------------------------------------- in this process


class InProcess:
    """Asks an application without sockets. Every answer is held against the API's description."""

    def __init__(
        self, control: FakeControl, tcp_token: str | None = None, server: str = "http://127.0.0.1:8741"
    ) -> None:
        self.control = control
        self.app = build(control, tcp_token)
        self.server = server

    def __call__(self, method: str, path: str, **request: Any) -> httpx.Response:
        return asyncio.run(self._ask(method, path, request))

    async def _ask(self, method: str, path: str, request: Mapping[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(_addressed(self.app, self.server), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url=self.server) as client:
            answer = await client.request(method, path, **request)
        conforms(method, answer)
        return answer

    def json(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        """The JSON of an answer that must have a status."""
        answer = self(method, path, **request)
        assert answer.status_code == status, answer.text
        return answer.json()

    def problem(self, method: str, path: str, status: int, **request: Any) -> dict[str, Any]:
        """A problem document."""
        answer = self(method, path, **request)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
        found: dict[str, Any] = answer.json()
        return found


def _addressed(app: Any, server: str) -> Any:
    """The application with the address that was connected to, which httpx takes from the URL's name."""
    url = httpx.URL(server)

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "server": (url.host, url.port)}, receive, send)

    return call


# -------------------------------------------------------------------------------------------------- the description


def template_of(path: str) -> str | None:
    """The path of the description that a path of a request is."""
    if path in DESCRIBED["paths"]:
        return path
    parts = path.split("/")
    for template in DESCRIBED["paths"]:
        pieces = template.split("/")
        fits = len(pieces) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(pieces, parts))
        if fits and (template != "/{file}" or "." in path):
            return str(template)
    return None


def conforms(method: str, answer: httpx.Response) -> None:
    """Fail unless an answer is one that the description tells of."""
    template = template_of(answer.request.url.path)
    operation = DESCRIBED["paths"].get(template, {}).get("get" if method == "HEAD" else method.lower())
    if operation is None or answer.status_code in (421, 500):
        return
    described = _resolved(operation["responses"].get(str(answer.status_code)))
    assert described, f"{method} {template} says nothing of {answer.status_code}"
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in described["content"], f"{method} {template}: {media_type}"
    if method != "HEAD" and media_type.endswith("json"):
        valid(described["content"][media_type]["schema"], answer.json())


def valid(schema: Mapping[str, Any], value: Any) -> None:
    """Fail unless a value is as a schema of the description says."""
    whole = {**schema, "components": DESCRIBED["components"]}
    jsonschema_rs.validator_for(whole, validate_formats=True).validate(value)


def _resolved(found: Any) -> Any:
    if isinstance(found, dict) and "$ref" in found:
        return DESCRIBED["components"]["responses"][found["$ref"].rpartition("/")[2]]
    return found


# -------------------------------------------------------------------------------------------------- over sockets


class Served:
    """An application on a Unix socket, in a thread with a loop of its own."""

    def __init__(self, root: Path, **doorman: Any) -> None:
        self.path = root / "daemon.sock"
        self.control = FakeControl(Queue(root / "queue.sqlite"))
        self.doorman = Doorman(self.control.metrics.refused, **doorman)
        self.loop = asyncio.new_event_loop()
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.listener: Listener = self.run(serve_unix(build(self.control), self.path, self.doorman))

    def run(self, work: Awaitable[Any]) -> Any:
        """Do something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(_awaited(work), self.loop).result(PATIENCE)

    def close(self) -> None:
        self.run(self.listener.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
        self.control.queue.close()

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A raw connection."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.path))
            yield connection

    def sends(self, content: bytes, half_close: bool = False) -> bytes:
        """Everything that comes back for some bytes until the server closes the connection."""
        with self.connected() as connection:
            try:
                connection.sendall(content)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:  # closed before all was sent
                pass
            return everything(connection)

    def count(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge."""
        return self.control.metrics.registry.get_sample_value(name, labels) or 0.0


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def everything(connection: socket.socket) -> bytes:
    """What a connection brings until its end."""
    found = b""
    while True:
        try:
            more = connection.recv(65536)
        except ConnectionError:
            return found
        if not more:
            return found
        found += more


def one_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer that has a Content-Length."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += connection.recv(65536)
    head, _, body = found.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


def problem_in(answer: bytes) -> dict[str, Any]:
    """The problem document in the bytes of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower()
    found: dict[str, Any] = json.loads(body)
    valid(DESCRIBED["components"]["schemas"]["Problem"], found)
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    import time

    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.005)
