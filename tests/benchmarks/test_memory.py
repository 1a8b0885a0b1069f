"""Peak memory: what is allocated during a call is found, what was there before is not, and failures are told."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from benchmarks.memory import ChildError, in_child, peak_of

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and resets the peak")


def peaks(held: int, transient: int, returned: int) -> dict[str, int]:
    """Peak of a call that has ``transient`` MiB for a while and returns ``returned``, beside ``held`` from before."""
    before = torch.ones(held * MIB // 4)

    def call() -> torch.Tensor:
        passing = torch.ones(transient * MIB // 4)
        del passing
        return torch.ones(returned * MIB // 4)

    first = peak_of(call)
    second = peak_of(call)
    assert before[0] == 1
    return {"first": first, "second": second}


@pytest.mark.parametrize(("held", "transient", "returned"), [(64, 48, 8), (1, 40, 64), (16, 0, 0)])
def test_peak_is_what_the_call_adds(held: int, transient: int, returned: int) -> None:
    expected = max(transient, returned) * MIB
    for peak in in_child(peaks, held, transient, returned).values():
        assert abs(peak - expected) <= 2 * MIB  # the kernel counts pages in lots


def fails() -> None:
    raise NotImplementedError("cannot do this\nand more lines")


def fails_again() -> None:
    try:
        fails()
    except NotImplementedError as error:
        raise RuntimeError("could not compile") from error


def dies() -> None:
    os._exit(9)


def test_why_there_is_no_result() -> None:
    with pytest.raises(ChildError, match=r"^NotImplementedError: cannot do this$"):
        in_child(fails)
    with pytest.raises(ChildError, match=r"^NotImplementedError: cannot do this$"):
        in_child(fails_again)
    with pytest.raises(ChildError, match="exit code 9"):
        in_child(dies)


def test_a_child_has_a_process_of_its_own() -> None:
    found = {in_child(os.getpid), in_child(os.getpid)}
    assert len(found) == 2
    assert os.getpid() not in found
