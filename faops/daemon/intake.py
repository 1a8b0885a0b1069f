"""What comes in: misses of programs and submissions of people, made into jobs by a child process that knows torch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from faops.daemon import log
from faops.daemon.child import WorkerChild, WorkerError, WorkerGoneError
from faops.daemon.jobs import Submission, Task
from faops.daemon.queue import Queue
from faops.daemon.spool import Spool, SpoolMiss
from faops.errors import DaemonError

POLL_SECONDS = 1.0
LINGER_SECONDS = 5.0  # a child without a question is kept as long: misses come in bursts
RETRY_SECONDS = 5.0
BATCH = 256  # misses assessed in one request

logger = log.get("intake")


class Intake:
    """Watches the spool and the submissions. ``may_assess`` says whether some device is idle: misses can wait until
    then, while a submission is made into jobs at once."""

    def __init__(
        self,
        queue: Queue,
        spool: Spool,
        metrics: Any,
        launch: Callable[[], Awaitable[WorkerChild]],
        may_assess: Callable[[], bool],
        on_jobs: Callable[[], None],
    ) -> None:
        self.queue, self.spool, self.metrics = queue, spool, metrics
        self.launch, self.may_assess, self.on_jobs = launch, may_assess, on_jobs
        self.child: WorkerChild | None = None
        self.stopping = False
        self.woken = asyncio.Event()
        self.misses: dict[tuple[str, str, str], SpoolMiss] = {}  # seen, and not assessed yet
        self.batch = BATCH
        self._used = 0.0

    async def run(self) -> None:
        """Take in until :meth:`stop`. A defect in one round is logged, and the loop goes on."""
        while not self.stopping:
            pause = POLL_SECONDS
            try:
                await self._round()
            except DaemonError as error:
                logger.error("intake_waits", "will try again", error=str(error))
                self.metrics.failed("intake")
                pause = RETRY_SECONDS
            except Exception as error:
                logger.exception("defect", "a defect of faops", error=error)
                self.metrics.failed("defect")
                pause = RETRY_SECONDS
            self.woken.clear()
            if not self.stopping:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.woken.wait(), pause)
        await self._end_child(grace=0.0)

    async def stop(self) -> None:
        """Let :meth:`run` end."""
        self.stopping = True
        self.woken.set()
        await self._end_child(grace=0.0)

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Ask the child, which is started where there is none. Raises WorkerError and WorkerGoneError."""
        if self.child is None or self.child.gone:
            await self._end_child()
            self.child = await self.launch()
        try:
            if self.stopping:  # since the launch
                raise WorkerGoneError("the daemon stops")
            return await self.child.ask(do, **arguments)
        finally:
            self._used = time.monotonic()

    async def _round(self) -> None:
        while not self.stopping and (submission := self.queue.next_submission()) is not None:
            await self._expand(submission)
        self._look()
        if self.misses and self.may_assess():
            await self._assess()
        if self.child is not None and time.monotonic() - self._used > LINGER_SECONDS:
            await self._end_child()

    # ------------------------------------------------------------------------------------------ submissions

    async def _expand(self, submission: Submission) -> None:
        """Make a submission into jobs. One that ends the child is refused: it would end the next one too."""
        try:
            found = await self.ask("expand", request=submission.request)
        except DaemonError as error:
            if self.stopping:
                return
            self.queue.refuse(submission.id, str(error))
            self.metrics.failed("submission")
            logger.warning("submission_refused", str(error), submission=submission.id)
            return
        tasks = [Task.from_dict(task) for task in found["tasks"]]
        refused = [(words, why) for words, why in found["refused"]]
        forced = bool(submission.request.get("force"))
        jobs = self.queue.expanded(submission.id, tasks, refused, forced)
        logger.info("submission_expanded", f"{len(jobs)} jobs", submission=submission.id, refused=len(refused))
        self.on_jobs()

    # ------------------------------------------------------------------------------------------ misses

    def _look(self) -> None:
        """Take new misses from the spool; those that are in the queue need no assessing."""
        for miss in self.spool.poll():
            mark = (miss.identity, miss.environment, miss.key)
            job = self.queue.find(mark)
            if job is not None and job.state != "done":
                self.queue.hits(mark, miss.hits)
            else:
                self.misses[mark] = miss
        for problem in self.spool.problems:
            logger.warning("spool", problem)
        self.spool.problems.clear()

    async def _assess(self) -> None:
        batch = list(self.misses.values())[: self.batch]
        asked = [
            {
                "identity": miss.identity,
                "environment": miss.environment,
                "problem": miss.problem,
                "threads": miss.device.get("threads", 0),
            }
            for miss in batch
        ]
        try:
            answers = await self.ask("assess", misses=asked)
        except WorkerGoneError as error:  # one of them ends the child: which, shows when each is asked alone
            if len(batch) > 1:
                self.batch = 1
                raise
            answers = [{"refused": str(error)}]
        except WorkerError as error:
            answers = [{"refused": str(error)}] * len(batch)
        self._take(batch, answers)
        if not self.misses:
            self.batch = BATCH

    def _take(self, batch: Sequence[SpoolMiss], answers: Sequence[dict[str, Any]]) -> None:
        pairs = []
        for miss, answer in zip(batch, answers):
            if "refused" in answer:
                logger.info("miss_left", answer["refused"], key=miss.key, identity=miss.identity)
                self.spool.forget((miss.identity, miss.environment, miss.key))
            else:
                pairs.append((Task.from_dict(answer), miss.hits))
        jobs = self.queue.missed(pairs)
        for miss in batch:
            self.misses.pop((miss.identity, miss.environment, miss.key), None)
        if jobs:
            logger.info("misses_queued", f"{len(jobs)} jobs", jobs=[job.id for job in jobs])
            self.on_jobs()

    async def _end_child(self, grace: float = LINGER_SECONDS) -> None:
        child, self.child = self.child, None
        if child is not None:
            await child.stop(grace)
