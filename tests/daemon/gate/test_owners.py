"""Which processes on a device are ours, above all in a container, where the driver has other numbers for them."""

from __future__ import annotations

import os

import pytest

from faops.daemon.gate import owners

from .support import CHILD, OTHER, OUTER, OUTER_NEXT, SERVER, Gpu


def test_the_one_that_came_with_our_child_is_ours(contained: Gpu) -> None:
    contained.pynvml.memory = {SERVER: 5}
    contained.busy()
    contained.tune()
    assert contained.busy() == ""  # which has not begun to compute
    contained.pynvml.memory = {SERVER: 5, OUTER: 1}
    for _ in range(20):
        contained.pynvml.use(OUTER, 97)
        assert contained.busy(0.25) == ""
    contained.pynvml.use(SERVER, 50)
    assert contained.busy(0.25) == f"pid {SERVER} uses 50 % of the GPU"
    contained.pynvml.memory[OTHER] = 1
    contained.pynvml.use(OTHER, 51)
    assert contained.busy(0.25) == f"pid {OTHER} uses 51 % of the GPU"


def test_our_next_child_is_ours_too(contained: Gpu) -> None:
    contained.busy()
    contained.tune()
    for ours in (OUTER, OUTER_NEXT):
        contained.pynvml.memory = {ours: 1}
        assert contained.busy() == ""
        contained.pynvml.use(ours, 90)
        assert contained.busy() == ""
        contained.pynvml.memory = {}
        assert contained.busy() == ""


def test_who_came_later_is_not_ours(contained: Gpu) -> None:
    contained.pynvml.fail("uses")
    contained.busy()
    contained.tune()
    contained.pynvml.memory = {OUTER: 1}
    assert contained.busy() == ""
    assert contained.busy(1.5) == ""
    contained.pynvml.memory = {OUTER: 1, OTHER: 1}
    assert contained.busy() == f"pid {OTHER} came to the GPU"
    contained.pynvml.memory = {OTHER: 1}
    assert contained.busy() == f"pid {OTHER} came to the GPU"
    assert contained.busy(5) == ""  # ours ended, which does not make the other one ours
    contained.pynvml.utilisation = 70
    assert contained.busy() == "other programs use 70 % of the GPU"
    contained.pynvml.memory = {OTHER: 1, OUTER_NEXT: 1}
    assert contained.busy() == ""


def test_of_two_that_came_at_once_nobody_knows(contained: Gpu) -> None:
    contained.busy()
    contained.tune()
    contained.pynvml.memory = {OUTER: 1, OTHER: 1}
    for _ in range(3):
        contained.pynvml.use(OUTER, 50)
        found = contained.look()
        assert found.busy == f"one of pid {OTHER}, {OUTER} is not ours, and in a container nobody tells which"
        assert found.figures["others_utilisation"] == 0.0
    contained.own = {os.getpid()}
    assert contained.busy(5) == ""


def test_after_us_everybody_is_another(contained: Gpu) -> None:
    contained.busy()
    contained.tune()
    contained.pynvml.memory = {OUTER: 1}
    contained.busy()
    contained.own = {os.getpid()}
    contained.pynvml.use(OUTER, 90)
    assert contained.busy() == ""
    contained.busy(5)
    contained.pynvml.use(OUTER, 90)
    assert contained.busy() == f"pid {OUTER} uses 90 % of the GPU"


def test_where_our_numbers_are_seen_they_are_the_driver_s(contained: Gpu) -> None:
    contained.tune()
    contained.pynvml.memory = {CHILD: 1, OTHER: 1}
    assert contained.busy() == ""
    contained.pynvml.use(CHILD, 90)
    assert contained.busy() == ""
    contained.pynvml.use(OTHER, 90)
    assert contained.busy() == f"pid {OTHER} uses 90 % of the GPU"


@pytest.mark.parametrize(("space", "alike"), [("pid:[4026531836]", True), ("pid:[4026532201]", False)])
def test_whose_numbers_the_driver_tells(monkeypatch: pytest.MonkeyPatch, space: str, alike: bool) -> None:
    monkeypatch.setattr("os.readlink", lambda path: space)
    assert owners.numbered_alike() is alike


def test_without_proc_numbers_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr("os.readlink", missing)
    assert not owners.numbered_alike()
