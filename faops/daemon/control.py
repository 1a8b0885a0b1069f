"""What the HTTP handlers see of the daemon: the scheduler and its service, and nothing else of them.

The queue is read and written by the handlers themselves, in the loop that everything runs in; whoever puts something
into it calls :meth:`Control.wake`. The counters are :class:`faops.daemon.http.metrics.Metrics`, which the scheduler
feeds:

- ``finished(result, device)``: a job is done; the worker's result.
- ``failed(kind)``: something went wrong, in a word: "crash", "job", "submission", "intake", "devices", "defect", ...
- ``gate(device, state)``: what the gate of a device said.
- ``worker(device, memory_bytes)``: what the measuring child of a device holds; None once it is gone.
- ``refused(why)``: a connection was not taken, in a word; told by the listeners.
- ``answered(method, path, status, seconds)``: a request; told by the application.

What the queue counts itself (misses, winners, measurements, ...) is read from it when somebody looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from faops.daemon.http.metrics import Metrics
    from faops.daemon.jobs import Job
    from faops.daemon.queue import Queue


class Control(Protocol):
    """The daemon, as far as its clients may look at it and tell it what to do. No method blocks."""

    @property
    def queue(self) -> Queue:
        """The jobs. Every method of it may raise DaemonError."""

    @property
    def metrics(self) -> Metrics:
        """The counters of this process."""

    @property
    def stopping(self) -> bool:
        """Whether the daemon is about to end: nothing more may be changed then."""

    def ready(self) -> tuple[bool, str]:
        """Whether it has started and works on its queue, and in words why not."""

    def status(self) -> dict[str, Any]:
        """The answer to ``GET /v1/status``, JSON-able, as the schema Status in openapi.yaml says."""

    def pause(self, reason: str, seconds: float | None) -> None:
        """Begin no job until :meth:`resume`, or for so many seconds; a running one stands still meanwhile."""

    def resume(self) -> None:
        """End a pause. Does nothing where there is none."""

    def wake(self) -> None:
        """Look at the queue now: something in it is new."""

    def cancel(self, job_id: int) -> Job:
        """Cancel a job; one that runs is ended. Raises what Queue.cancel raises."""

    async def open_http(self, address: str | None) -> str:
        """Listen on a loopback address ("host:port", None is 127.0.0.1 and any port); the page's URL with its token.

        Answers with the same URL while the listener is open. Raises ArgumentError for what is no address of this
        machine's loopback and DaemonError where it cannot listen.
        """

    def stop(self) -> None:
        """End the daemon, soon: the caller's answer still goes out."""
