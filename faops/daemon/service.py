"""The daemon's process: one event loop for the scheduler and the servers, from its lock to its last signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from faops import settings
from faops._version import __version__
from faops.daemon import config as configuration
from faops.daemon import log, paths, start, status, systemd
from faops.daemon.config import Config
from faops.daemon.http import app, server, token, views
from faops.daemon.http.metrics import Metrics
from faops.daemon.http.peer import Doorman
from faops.daemon.jobs import Job
from faops.daemon.lock import Instance
from faops.daemon.queue import Queue
from faops.daemon.scheduler import Scheduler
from faops.daemon.spool import Spool
from faops.errors import ArgumentError, DaemonError, FaopsError

STOP_SECONDS = 8.0  # what an orderly end may take; then the process ends anyway, and nothing is lost
ANSWER_SECONDS = 0.2  # a client that has ordered the end still gets its answer
STATUS_SECONDS = 0.1
DEFAULT_ADDRESS = "127.0.0.1:0"

logger = log.get("service")


@dataclass(frozen=True)
class Options:
    """What the command line says. ``http`` is an address to listen on, "host:port", besides the socket.

    It must be one of the loopback unless ``allow_remote``. ``idle_gate`` overrides the setting if it is not None, and
    ``json_log`` writes what standard error shows as JSON.
    """

    http: str | None = None
    allow_remote: bool = False
    idle_gate: bool | None = None
    log_level: str = "info"
    json_log: bool = False

    def config(self) -> Config:
        """The settings as they are now, with what the command line overrides. Raises SettingsError, ArgumentError."""
        found = configuration.load()
        if self.idle_gate is not None:
            found = replace(found, idle_gate=self.idle_gate)
        return found if self.http is None else replace(found, http=_address(self.http))


def run(options: Options) -> int:
    """Be the daemon until a signal ends it; the exit code.

    Raises SettingsError, ArgumentError and DaemonError where it cannot begin, a RunningError among them where another
    one of this user runs on this host.
    """
    config = options.config()
    with Instance.acquire():
        log.setup(paths.log_path(), options.log_level, stderr=_stderr(options))
        with Queue(paths.queue_path(), attempts=config.attempts) as queue:
            if queue.broken is not None:
                logger.warning("queue_broken", f"the queue could not be read; it is kept as {queue.broken}")
            return asyncio.run(Service(options, config, queue).run())


class Service:
    """Ties everything together; what clients see of it is :class:`faops.daemon.control.Control`."""

    def __init__(self, options: Options, config: Config, queue: Queue) -> None:
        self.options = options
        self.queue = queue
        self.metrics = Metrics(queue)
        self.scheduler = Scheduler(queue, Spool(settings.cache_root()), config, self.metrics)
        self.began = time.time()
        self._ended = asyncio.Event()
        self._tcp: server.Listener | None = None
        self._url = ""  # with its token
        self._opening = asyncio.Lock()
        self._told: dict[str, Any] = {}
        self._told_at = 0.0
        self._doorman = Doorman(self.metrics.refused)

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> int:
        """Serve and work until a signal or :meth:`stop`."""
        self._listen_to_signals()
        inherited = systemd.inherited_sockets()
        application = app.build(self)
        path = paths.socket_path()
        unix = await server.serve_unix(application, inherited[0] if inherited else path, self._doorman)
        try:
            if self.scheduler.config.http is not None:
                host, port = self.scheduler.config.http
                await self._open(host, port)
            return await self._work(path)
        finally:
            await self._close(unix)

    async def _work(self, path: Any) -> int:
        working = asyncio.ensure_future(self.scheduler.run())
        watching = asyncio.ensure_future(self._watchdog())
        ending = asyncio.ensure_future(self._ended.wait())
        logger.info("started", f"faops {__version__}, pid {os.getpid()}", socket=str(path))
        systemd.notify(READY=1, STATUS="tuning in the background")
        try:
            await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not self._ended.is_set():  # it ends only when told to
                working.result()
                raise DaemonError("the scheduler has ended by itself")
        finally:
            systemd.notify(STOPPING=1)
            watching.cancel()
            await self._end_within(working)
        logger.info("stopped", f"after {time.time() - self.began:.0f} s")
        return 0

    async def _end_within(self, working: asyncio.Future[None]) -> None:
        """Stop the scheduler, in time or by force: then its children end by themselves, since their pipes close."""
        stopping = asyncio.ensure_future(self.scheduler.stop())
        await asyncio.wait({working, stopping}, timeout=STOP_SECONDS, return_when=asyncio.ALL_COMPLETED)
        for task in (working, stopping):
            if not task.done():
                logger.warning("stop_forced", f"the scheduler did not end within {STOP_SECONDS:g} s")
                task.cancel()

    async def _close(self, unix: server.Listener) -> None:
        await asyncio.sleep(ANSWER_SECONDS)
        for listener in (unix, self._tcp):
            if listener is not None:
                await listener.stop()
        with contextlib.suppress(OSError, DaemonError):
            paths.token_path(create=False).unlink(missing_ok=True)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def _on_end(self, number: int) -> None:
        logger.info("signal", signal.Signals(number).name)
        self.stop()

    async def _watchdog(self) -> None:
        """Tell systemd that the loop is alive, if it wants to know."""
        seconds = systemd.watchdog_seconds()
        while seconds:
            systemd.notify(WATCHDOG=1)
            await asyncio.sleep(seconds / 3)

    def reload(self) -> None:
        """Read faops.yaml again; the settings stay as they were where it holds nonsense."""
        systemd.notify(RELOADING=1)
        try:
            self.scheduler.configure(self.options.config())
            logger.info("reloaded", "settings were read again", **self.scheduler.config.as_dict())
        except FaopsError as error:
            logger.error("not_reloaded", str(error))
            self.metrics.failed("settings")
        systemd.notify(READY=1)

    # ------------------------------------------------------------------------------------------ control

    @property
    def stopping(self) -> bool:
        return self.scheduler.stopping or self._ended.is_set()

    def ready(self) -> tuple[bool, str]:
        """It answers and its queue is open; the devices may still be looked for."""
        return (False, "it is stopping") if self.stopping else (True, self.scheduler.trouble)

    def status(self) -> dict[str, Any]:
        """The same to all who ask within STATUS_SECONDS, unless something was ordered meanwhile."""
        now = time.monotonic()
        if not self._told or now - self._told_at > STATUS_SECONDS:
            self._told, self._told_at = self._look(), now
        return self._told

    def _look(self) -> dict[str, Any]:
        scheduler = self.scheduler
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": views.time(self.began),
            "uptime_seconds": max(0.0, time.time() - self.began),
            "state": "stopping" if self.stopping else status.state_of(scheduler),
            "paused": status.paused_of(scheduler),
            "jobs": self.queue.counts(),
            "memory_bytes": scheduler.memory_of(None),
            "http": None if self._tcp is None else self._tcp.url,
            "devices": status.devices_of(scheduler),
            "running": [
                {"job": views.job(running.job), **status.progress_of(running)}
                for running in status.running_of(scheduler)
            ],
            "totals": self.queue.totals(),
            "settings": scheduler.config.as_dict(),
        }

    def pause(self, reason: str, seconds: float | None) -> None:
        self.queue.set_paused(reason, None if seconds is None else time.time() + seconds)
        logger.info("paused", reason, seconds=seconds)
        self.wake()

    def resume(self) -> None:
        self.queue.set_paused(None)
        logger.info("resumed")
        self.wake()

    def wake(self) -> None:
        self._told = {}
        self.scheduler.wake()

    def cancel(self, job_id: int) -> Job:
        self._told = {}
        return self.scheduler.cancel(job_id)

    def stop(self) -> None:
        self._told = {}
        self._ended.set()

    async def open_http(self, address: str | None) -> str:
        host, port = _address(address or DEFAULT_ADDRESS)
        return await self._open(host, port)

    async def _open(self, host: str, port: int) -> str:
        async with self._opening:
            if self._tcp is None:
                secret = token.make()
                listener = await server.serve_tcp(
                    app.build(self, tcp_token=secret), host, port, self._doorman, self.options.allow_remote
                )
                token.write(paths.token_path(), secret)
                self._told = {}
                self._tcp, self._url = listener, f"{listener.url}/#token={secret}"
                logger.info("listening", listener.url)
            return self._url


def _address(text: str) -> tuple[str, int]:
    try:
        return settings.split_address(text)
    except ValueError as error:
        raise ArgumentError("http", repr(text), f"an address such as 127.0.0.1:8080 ({error})") from None


def _stderr(options: Options) -> bool | Literal["json"]:
    """Where `faops daemon start` reads it, standard error is only for what comes before the log."""
    if start.is_detached():
        return False
    return "json" if options.json_log else True
