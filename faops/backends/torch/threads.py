"""Running a kernel with another number of CPU threads than the process uses."""

from __future__ import annotations

import torch


class cpu_threads:  # noqa: N801 (a context manager, named like one)
    """Compute with ``count`` threads inside the block; 0 leaves the process's own number alone.

    A class and not a generator, because it is on every call's path.
    """

    __slots__ = ("before", "count")

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        if self.count:
            self.before = torch.get_num_threads()
            if self.count != self.before:
                torch.set_num_threads(self.count)

    def __exit__(self, *error: object) -> None:
        if self.count and self.count != self.before:
            torch.set_num_threads(self.before)


def thread_choices(available: int) -> list[int]:
    """Thread counts worth trying: the process's own (0), one, and half."""
    choices = [0]
    for count in (1, available // 2):
        if 0 < count < available and count not in choices:
            choices.append(count)
    return choices
