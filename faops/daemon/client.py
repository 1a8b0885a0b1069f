"""Talks to the daemon over its socket. Every answer is the API's JSON; fields that are not known are left in it.

with Client() as daemon:
    daemon.submit({"model": "smollm2-135m"})
    print(daemon.status()["state"])
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from faops.errors import DaemonError, NotRunningError

if TYPE_CHECKING:
    import httpx

Answer = dict[str, Any]

TIMEOUT = 10.0  # seconds
LONGEST_DETAIL = 300  # characters of an answer that is none of the API's


class RefusedError(DaemonError):
    """The daemon does not do what it was asked. ``status`` is HTTP's, ``field`` what of the request is wrong."""

    def __init__(self, detail: str, status: int, field: str | None = None) -> None:
        self.status, self.field = status, field
        super().__init__(detail)


class Client:
    """A client of the daemon at a socket, by default that of this user's daemon.

    Every method raises NotRunningError where nothing listens, RefusedError where the daemon says no, and DaemonError
    where it does not answer within ``timeout`` seconds or not as the API says.
    """

    def __init__(self, path: Path | None = None, timeout: float = TIMEOUT) -> None:
        self.path = _default_path() if path is None else path
        self.timeout = timeout
        self._http: httpx.Client | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ jobs

    def jobs(self, states: Sequence[str] = (), limit: int | None = None, before: int | None = None) -> Answer:
        """{"jobs": [...], "next": id or None}; those that wait alone in the order in which they will run."""
        return self._get("/v1/jobs", state=list(states), limit=limit, before=before)

    def job(self, job_id: int) -> Answer:
        """One job."""
        return self._get(f"/v1/jobs/{job_id}")

    def heat_map(self, job_id: int) -> str:
        """The timings of a job as a fragment of HTML."""
        return self._send("GET", f"/v1/jobs/{job_id}/heat-map").text

    def winners(self, limit: int | None = None) -> list[Answer]:
        """Jobs that are done, newest first."""
        return list(_part(self._get("/v1/winners", limit=limit), "winners"))

    def cancel(self, job_id: int) -> Answer:
        """Cancel a job; the job."""
        return self._json("DELETE", f"/v1/jobs/{job_id}")

    def retry(self, job_id: int) -> Answer:
        """Let a job wait again; the job."""
        return self._json("POST", f"/v1/jobs/{job_id}/retry")

    def submit(self, request: Mapping[str, Any]) -> Answer:
        """Ask for problems to be tuned; the submission, which is made into jobs soon."""
        return self._json("POST", "/v1/submissions", request)

    def submission(self, submission_id: int) -> Answer:
        """What became of a submission."""
        return self._get(f"/v1/submissions/{submission_id}")

    # ------------------------------------------------------------------------------------------ the daemon

    def status(self) -> Answer:
        """What the daemon does."""
        return self._get("/v1/status")

    def pause(self, reason: str = "", seconds: float | None = None) -> Answer:
        """Pause tuning, until :meth:`resume` or for so many seconds; the status."""
        asked = {"reason": reason, **({} if seconds is None else {"seconds": seconds})}
        return self._json("POST", "/v1/pause", asked)

    def resume(self) -> Answer:
        """End a pause; the status."""
        return self._json("POST", "/v1/resume")

    def open_http(self, address: str | None = None) -> str:
        """Open the dashboard on the loopback; its URL with the token."""
        return str(_part(self._json("POST", "/v1/http", {} if address is None else {"address": address}), "url"))

    def stop(self) -> None:
        """End the daemon; it does so soon."""
        self._json("POST", "/v1/stop")

    def ready(self) -> tuple[bool, str]:
        """Whether the daemon works on its queue, and why not."""
        answer = _parsed(self._send("GET", "/readyz", accepted=(200, 503)))
        return bool(_part(answer, "ready")), str(answer.get("reason", ""))

    def metrics(self) -> str:
        """Its counters in Prometheus' text format."""
        return self._send("GET", "/metrics").text

    # ------------------------------------------------------------------------------------------ HTTP

    def _get(self, path: str, **query: Any) -> Answer:
        given = {name: value for name, value in query.items() if value is not None and value != []}
        return _parsed(self._send("GET", path, query=given))

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        return _parsed(self._send(method, path, body=body))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        accepted: Sequence[int] = (),
    ) -> httpx.Response:
        http = self._connected()
        with self._explained():
            answer = http.request(method, path, params=query, json=None if body is None else dict(body))
        if not answer.is_success and answer.status_code not in accepted:
            raise _refusal(answer)
        return answer

    def _connected(self) -> httpx.Client:
        if self._http is None:
            httpx = _httpx()
            # Settings of proxies in the environment are for other hosts.
            self._http = httpx.Client(
                transport=httpx.HTTPTransport(uds=str(self.path), verify=False),  # there is no TLS on a socket
                base_url="http://faops",
                timeout=self.timeout,
                trust_env=False,
            )
        return self._http

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What httpx raises as errors of ours."""
        httpx = _httpx()
        try:
            yield
        except httpx.ConnectError as error:
            raise self._unreachable(error) from None
        except httpx.TimeoutException:
            raise DaemonError(f"the daemon at {self.path} does not answer within {self.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise DaemonError(f"the daemon at {self.path} has closed the connection: {error}") from None

    def _unreachable(self, error: Exception) -> DaemonError:
        if _errno(error) in (errno.EACCES, errno.EPERM):
            return DaemonError(f"{self.path} belongs to another user's daemon, or is closed to this one")
        return NotRunningError(f"no daemon answers at {self.path}; `faops daemon start` starts one")


def _default_path() -> Path:
    from faops.daemon import paths

    return paths.socket_path(create=False)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise DaemonError("the daemon's packages are missing; install them with: pip install 'faops[daemon]'") from None
    return httpx


def _errno(error: BaseException | None) -> int | None:
    """The number of the system's error that an error comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _parsed(answer: httpx.Response) -> Answer:
    try:
        found = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise DaemonError(f"the daemon has answered with what is no JSON object: {answer.text[:LONGEST_DETAIL]!r}")
    return found


def _part(answer: Answer, name: str) -> Any:
    try:
        return answer[name]
    except KeyError:
        raise DaemonError(f"the daemon's answer lacks {name!r}: it may be of another version") from None


def _refusal(answer: httpx.Response) -> RefusedError:
    status = answer.status_code
    try:
        problem = answer.json()
        detail, field = str(problem["detail"]), problem.get("field")
    except (ValueError, TypeError, KeyError, AttributeError):
        return RefusedError(f"the daemon has answered with {status}: {answer.text[:LONGEST_DETAIL]!r}", status)
    return RefusedError(detail, status, field)
