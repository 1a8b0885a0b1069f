"""What a run of the tuner has still to do, on disk, so that an interrupted run can be gone on with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faops.autotune.cache.entry import problem_dict
from faops.files import write_whole
from faops.problem import AttentionProblem

FORMAT = 1
FILE_NAME = "run.json"


@dataclass
class Pending:
    """The problems that a run has not finished. ``forced``: they are measured even where there is an entry."""

    path: Path
    problems: list[AttentionProblem]
    forced: bool = False

    def save(self) -> None:
        """Write what is left; no file where nothing is. A cache that cannot be written remembers nothing."""
        with contextlib.suppress(OSError):
            if not self.problems:
                self.path.unlink(missing_ok=True)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            problems = [problem_dict(problem) for problem in self.problems]
            write_whole(self.path, json.dumps({"run": FORMAT, "forced": self.forced, "problems": problems}) + "\n")

    def done(self, problem: AttentionProblem) -> None:
        """Strike out a finished problem."""
        if problem in self.problems:
            self.problems.remove(problem)
            self.save()


def load(directory: Path) -> Pending:
    """What the last run below the directory of a device and an environment left; nothing where there is no such file,
    or one that cannot be read."""
    path = directory / FILE_NAME
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(data, dict) or data.get("run") != FORMAT:
            return Pending(path, [])
        return Pending(path, _problems(data["problems"]), bool(data["forced"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Pending(path, [])


def _problems(data: Sequence[dict[str, Any]]) -> list[AttentionProblem]:
    return [AttentionProblem.from_dict(item) for item in data]
