"""How long a job that failed is left alone."""

from __future__ import annotations

import zlib

FIRST_SECONDS = 30.0
FACTOR = 4
LONGEST_SECONDS = 86400.0
SPREAD = 0.2  # of the delay, at most, by which jobs that failed together come apart again


def delay(job_id: int, failures: int) -> float:
    """Seconds after the ``failures``-th failure in a row: 30 s × 4^(failures − 1), a day at most.

    Up to a fifth less, by a hash of both arguments: the same for the same job, so that a restart changes nothing.
    """
    longest = FIRST_SECONDS
    for _ in range(failures - 1):
        longest = min(longest * FACTOR, LONGEST_SECONDS)
        if longest == LONGEST_SECONDS:
            break
    share = zlib.crc32(f"{job_id}/{failures}".encode()) / 2**32
    return longest * (1 - SPREAD * share)
