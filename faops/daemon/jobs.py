"""What the daemon works on: a problem to tune on a device, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

State = Literal["waiting", "running", "done", "quarantined", "cancelled"]
Source = Literal["miss", "submission"]
SubmissionState = Literal["waiting", "expanded", "refused"]

STATES: tuple[State, ...] = ("waiting", "running", "done", "quarantined", "cancelled")


@dataclass(frozen=True)
class Task:
    """A problem to tune on one device of this machine.

    ``identity`` is the device's name in the tuning cache and ``environment`` the name of the directory below it;
    together with ``key``, the problem's, they tell tasks apart. ``device`` is a torch device such as "cuda:0" and
    ``threads`` what torch computes with on a CPU, else 0. ``words`` is the problem to be read by a person.
    ``call_seconds`` is about what one call takes, ``tuning_seconds`` about what tuning will. A ``warm`` one has a
    valid winner already.
    """

    identity: str
    environment: str
    device: str
    threads: int
    key: str
    problem: dict[str, Any]
    words: str
    call_seconds: float
    tuning_seconds: float
    warm: bool = False

    @property
    def mark(self) -> tuple[str, str, str]:
        """What is equal for equal tasks."""
        return self.identity, self.environment, self.key

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Task:
        """Read a task. Raises KeyError and TypeError."""
        return Task(**{item.name: data[item.name] for item in fields(Task)})


@dataclass(frozen=True)
class Job:
    """A task in the queue. Times are seconds since the epoch, None for what has not happened.

    ``hits`` counts the calls that ran untuned, as far as programs have told. ``attempts`` counts those that failed; a
    waiting job is not begun before ``not_before``. ``forced`` ones are measured even where there is a winner.
    ``message`` says in words what became of it, and ``result`` is what the worker found, {} before that.
    """

    id: int
    task: Task
    source: Source
    state: State
    hits: int = 1
    forced: bool = False
    attempts: int = 0
    not_before: float = 0.0
    created: float = 0.0
    begun: float | None = None
    finished: float | None = None
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """Seconds that programs have spent in it untuned: hits × estimated time of a call."""
        return self.hits * self.task.call_seconds


@dataclass(frozen=True)
class Submission:
    """What somebody asked to be tuned, before and after it was made into jobs.

    ``request`` holds what the API was given: one of "model", "hf_config", "plan" and "shapes", with "device",
    "options" and "force". ``jobs`` are the ids of its jobs once it is expanded, and ``message`` says why it was
    refused, or what of it was.
    """

    id: int
    request: dict[str, Any]
    state: SubmissionState
    created: float
    jobs: tuple[int, ...] = ()
    message: str = ""
