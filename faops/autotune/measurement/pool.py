"""Compiling the candidates of a problem in several processes at once, so that measuring finds their code on disk.

Backends keep what they compile in caches of their own, safe against several processes. A compiler that crashes or
hangs costs one candidate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

from faops.autotune import effort
from faops.autotune.measurement.process import AVAILABLE, Closable, Request, wait
from faops.autotune.measurement.remote import Helper, cannot_start, described, value_of
from faops.autotune.search.candidates import Candidate
from faops.device import DeviceProfile
from faops.errors import CompileError, CrashedError, FaopsError
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Kernel

Compiled = Resources | None | FaopsError


def compile_all(
    problem: AttentionProblem,
    profile: DeviceProfile,
    candidates: Sequence[Candidate],
    on_compiled: Callable[[Candidate, Compiled], None],
    processes: int = effort.COMPILE_PROCESSES,
) -> None:
    """Compile every candidate for ``profile`` and tell of each, in the calling thread, as soon as it is done.

    ``on_compiled`` gets what :meth:`Kernel.compile` returns, or the error. What it raises, KeyboardInterrupt too, ends
    all processes.
    """
    with CompilePool(processes) as pool:
        for candidate, compiled in pool.compiled(problem, profile, candidates):
            on_compiled(candidate, compiled)


class CompilePool(Closable):
    """Processes that compile, started when there is something to compile, kept for the next problem. A context
    manager; they end with it."""

    def __init__(self, processes: int = effort.COMPILE_PROCESSES) -> None:
        self.helpers = [Helper(threads=1) for _ in range(max(1, processes))]

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for helper in self.helpers:
            helper.close()

    def compiled(
        self, problem: AttentionProblem, profile: DeviceProfile, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[Candidate, Compiled]]:
        """Each candidate with what became of it, in the order in which they are done.

        The processes go on while the caller does something else between two of them. Raises TuningError when no
        process can be started.
        """
        run = _Run(problem, profile, [candidate for candidate in candidates if compiles(candidate.kernel)])
        for candidate in candidates:
            if not compiles(candidate.kernel):
                yield candidate, None
        if not AVAILABLE:
            run.here, run.waiting = list(run.waiting), deque()
        try:
            for helper in self.helpers[: len(run.waiting)]:
                run.employ(helper)
            while run.working:
                wait([helper.current for helper in run.working])
                for helper in list(run.working):
                    yield from run.finished(helper)
        finally:
            for helper in run.working:  # a caller that has heard enough leaves them at work
                helper.close()
        for candidate in run.here:
            yield candidate, _compiled(partial(run.compile_here, candidate))


class _Run:
    """Which process compiles what of one problem."""

    def __init__(self, problem: AttentionProblem, profile: DeviceProfile, candidates: Sequence[Candidate]) -> None:
        self.problem = problem
        self.profile = profile
        self.waiting = deque(candidates)
        self.here: list[Candidate] = []  # of kernels that the processes do not know
        self.working: dict[Helper, Candidate | None] = {}  # None while it starts

    def employ(self, helper: Helper) -> None:
        """Give a process the next candidate, once it has started; let it rest where none is left."""
        self.working.pop(helper, None)
        if self.waiting:
            helper.begin()
            self.working[helper] = None
            if helper.ready:
                self._give(helper)

    def _give(self, helper: Helper) -> None:
        while self.waiting:
            candidate = self.waiting.popleft()
            if helper.knows(candidate.kernel):
                self.working[helper] = candidate
                helper.current.ask(self._request(candidate), effort.COMPILE_LIMIT_SECONDS)
                return
            self.here.append(candidate)
        del self.working[helper]

    def _request(self, candidate: Candidate) -> Request:
        subject = {"problem": asdict(self.problem), "profile": self.profile.as_dict()}
        return {"do": "compile", **described(candidate), **subject}

    def finished(self, helper: Helper) -> Iterator[tuple[Candidate, Compiled]]:
        """What a process has finished, if anything; it is at work on the next candidate by then."""
        candidate = self.working[helper]
        try:
            answer = helper.current.take()
        except CrashedError as error:
            if candidate is None:
                raise cannot_start(error) from None
            self.employ(helper)
            yield candidate, error
            return
        if answer is None:
            return
        if candidate is None:
            helper.started(answer)
            self._give(helper)
            return
        self.employ(helper)
        yield candidate, _compiled(lambda: _resources(value_of(answer)))

    def compile_here(self, candidate: Candidate) -> Resources | None:
        """Compile in this process."""
        return candidate.kernel.compile(self.problem, self.profile, candidate.config)


def compiles(kernel: Kernel) -> bool:
    """Whether a kernel has anything to compile ahead."""
    return type(kernel).compile is not Kernel.compile


def _resources(fields: dict[str, int] | None) -> Resources | None:
    return None if fields is None else Resources(**fields)


def _compiled(compile: Callable[[], Resources | None]) -> Compiled:
    try:
        return compile()
    except FaopsError as error:
        return error
    except Exception as error:  # a compiler's own, which costs one candidate as well
        return CompileError(f"{type(error).__name__}: {error}")
