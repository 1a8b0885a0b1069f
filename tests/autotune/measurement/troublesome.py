"""A forward kernel that does what its config says, and another that only some processes have.

Importing this module registers the first, which is how a process that measures gets to know it.
"""

from __future__ import annotations

import ctypes
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from faops import registry
from faops.device import DeviceProfile
from faops.errors import ArgumentError, CompileError, FaopsWarning
from faops.footprint import Resources
from faops.problem import AttentionProblem
from faops.registry import Accepted, Config, Decision, Kernel

SLEEP = 0.02


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(1000)


def hang_alone() -> None:
    """Without ever letting another thread of Python run."""
    ctypes.PyDLL(None).sleep(1000)


def fail() -> None:
    raise RuntimeError("no")


def fail_strangely() -> None:
    raise ArgumentError("config", "this", "another")


def tell() -> None:
    """What this process computes with, as an error, since a kernel has no other way to speak."""
    raise RuntimeError(f"{torch.get_num_threads()} threads, {os.environ.get('FAOPS_TEST_WORD')}")


def warn() -> None:
    warnings.warn("take care", FaopsWarning, stacklevel=2)
    warnings.warn("somebody else's", UserWarning, stacklevel=2)


DEEDS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "wrong": lambda: None,
    "sleep": lambda: time.sleep(SLEEP),
    "segfault": segfault,
    "hang": hang,
    "hang alone": hang_alone,
    "fail": fail,
    "fail strangely": fail_strangely,
    "tell": tell,
    "warn": warn,
}


class Troublesome(Kernel):
    """Computes what SDPA does, after what its config asks for; "wrong" adds one to it."""

    backend = "troublesome"
    name = "forward"
    op = "forward"
    priority = -1

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return Accepted()

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return [Config(do=deed) for deed in DEEDS]

    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        return Config(do="")

    def launch(self, inputs: Any, config: Config) -> Any:
        DEEDS[str(config["do"])]()
        usual = registry.get("torch.sdpa_forward")
        assert usual is not None
        out, lse = usual.launch(inputs, Config(threads=0, upcast=False))
        return out + (config["do"] == "wrong"), lse

    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        if config["do"] == "wrong":
            raise CompileError("it is wrong", "source", "log")
        DEEDS[str(config["do"])]()
        return Resources(registers=problem.head_dim, spill_bytes=8, shared_bytes=device.units)


class Private(Troublesome):
    """One that a script registers: other processes do not have it."""

    name = "private"


KERNEL = Troublesome()
registry.register(KERNEL)
