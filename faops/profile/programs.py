"""What is recorded: attention problems by way of the dispatcher, or a user's script as Python would run it."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from faops import dispatch, execute
from faops.autotune.measurement.synthetic import inputs_for
from faops.device import detect
from faops.errors import UnavailableError
from faops.hollow import Inputs
from faops.inputs import BackwardInputs
from faops.problem import AttentionProblem
from faops.profile.events import TraceError


def of_problem(problem: AttentionProblem, device: torch.device, backend: str = "") -> Callable[[], object]:
    """A call of ``problem`` on random tensors, by the kernel and config that a program's call would get.

    Unlike a program's call it is not written down for `faops tune --from-misses`. Raises TuningError for a problem that
    no tensors can express, ArgumentError for an unknown backend and NoKernelError where nothing runs it.
    """
    inputs = inputs_for(problem, device)
    profile = detect(device)
    dispatch.plan(inputs.problem(), profile, backend)  # to refuse what cannot run before anything is recorded

    def run() -> object:
        asked = _fresh(inputs)
        try:
            return execute.run(dispatch.plan(asked.problem(), profile, backend), asked, _first(asked))
        except UnavailableError:  # the kernel knows it now, and another takes its place if there is one
            dispatch.forget()
            return execute.run(dispatch.plan(asked.problem(), profile, backend), asked, _first(asked))

    return run


def _fresh(inputs: Inputs) -> Inputs:
    """A new description of the same tensors, as every call has its own."""
    return replace(inputs, forward=replace(inputs.forward)) if isinstance(inputs, BackwardInputs) else replace(inputs)


def _first(inputs: Inputs) -> torch.Tensor:
    return inputs.dout if isinstance(inputs, BackwardInputs) else inputs.q


class ScriptError(TraceError):
    """A script ended with an error. ``__cause__`` is that error, where it is known."""


def of_script(path: Path, arguments: Sequence[str]) -> Callable[[], object]:
    """A run of a Python script in this process: as ``__main__``, with its arguments and its folder to import from.

    The run raises ScriptError for an exception and for an exit with anything but 0. Raises TraceError for a path that
    is no file.
    """
    if not path.is_file():
        raise TraceError(f"{path}: there is no such script")

    def run() -> None:
        before = sys.argv, list(sys.path)
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(path.resolve().parent))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code not in (None, 0):
                raise ScriptError(f"{path}: ended with exit code {end.code}") from None
        except TraceError:
            raise
        except Exception as error:
            words = " ".join(str(error).split()) or "no message"
            raise ScriptError(f"{path}{_line(error, path)}: {type(error).__name__}: {words}") from error
        finally:
            sys.argv = before[0]
            sys.path[:] = before[1]

    return run


def _line(error: Exception, path: Path) -> str:
    """The line of the script in which an error came up, such as ``:12``."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""
