"""Running a kernel with another number of CPU threads than the process uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads inside the block; 0 leaves the process's own number alone."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_choices(available: int) -> list[int]:
    """Thread counts worth trying: the process's own (0), one, and half."""
    choices = [0]
    for count in (1, available // 2):
        if 0 < count < available and count not in choices:
            choices.append(count)
    return choices
