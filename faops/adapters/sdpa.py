"""PyTorch's scaled_dot_product_attention through faops: inside a block, or in the whole process.

>>> import faops.adapters.sdpa
>>> with faops.adapters.sdpa.enabled() as calls:
...     out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
>>> calls.routed
1

What means the same in faops runs there; all else stays with PyTorch, is counted with its reason, and is logged once a
reason to the logger "faops.adapters.sdpa" at level INFO. What a call means is in :mod:`faops.adapters.sdpa_call`.

There are two hooks. A stand-in takes the function's place in torch.nn.functional, where nearly all code looks it up. In
a block there is also a torch function mode, which sees the builtin wherever it is called from: modules may have
imported it by name, and autograd's threads inherit the mode when they run a part of the forward pass again.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from faops.adapters.sdpa_call import POSITIONAL, Call, attend, causal_bias, obstacle
from faops.errors import ArgumentError, NoKernelError

NAME = "scaled_dot_product_attention"
BUILTIN: Any = torch._C._nn.scaled_dot_product_attention
OWN_KERNELS = "faops.backends."  # modules whose calls mean PyTorch's function itself

logger = logging.getLogger(__name__)


@dataclass
class Calls:
    """How many calls went to faops, and how many stayed with PyTorch, by reason. Not counted in compiled code."""

    routed: int = 0
    kept: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"routed to faops: {self.routed}"]
        lines += [f"kept by PyTorch: {count} ({reason})" for reason, count in self.kept.most_common()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Route:
    """Where calls go: to faops with this backend forced, counted here."""

    backend: str | None
    calls: Calls


class _ThreadState(threading.local):
    """``route`` is that of the innermost block. While ``busy`` a call is being answered: what it calls is PyTorch's."""

    route: Route | None = None
    busy = False


_state = _ThreadState()
_lock = threading.Lock()
_total = Calls()
_logged: set[str] = set()
_process: Route | None = None
_blocks = 0  # blocks that are open in any thread, and installations: while there are any, the stand-in is in place
_previous: Any = BUILTIN  # what the stand-in stands for


@contextmanager
def enabled(backend: str | None = None) -> Iterator[Calls]:
    """Send the calls of this thread to faops while the block runs. A decorator too.

    Args:
        backend: a backend or kernel to force (`faops kernels`), or None to choose. A call that a forced one cannot run
            raises NoKernelError.

    Yields:
        the counts of this block. Blocks nest; the innermost decides.
    """
    route = Route(backend, Calls())
    _place()
    try:
        with _Mode(route), _routed(route):
            yield route.calls
    finally:
        _remove()


@contextmanager
def _routed(route: Route) -> Iterator[None]:
    before, _state.route = _state.route, route
    try:
        yield
    finally:
        _state.route = before


@contextmanager
def disabled() -> Iterator[None]:
    """Leave the calls of this thread to PyTorch while the block runs, whatever is enabled or installed around it."""
    before, _state.busy = _state.busy, True
    try:
        yield
    finally:
        _state.busy = before


def install(backend: str | None = None) -> None:
    """Send the calls of all threads to faops from now on. May be called again to change ``backend``.

    It replaces ``torch.nn.functional.scaled_dot_product_attention``, which costs other functions nothing; code that
    has imported the function by name before keeps PyTorch's.
    """
    global _process
    first, _process = _process is None, Route(backend, Calls())
    if first:
        _place()


def uninstall() -> None:
    """Undo :func:`install`. Does nothing where it was not called."""
    global _process
    if _process is not None:
        _process = None
        _remove()


def stats() -> Calls:
    """The counts of the whole process since it began or :func:`reset_stats`."""
    with _lock:
        return Calls(_total.routed, Counter(_total.kept))


def reset_stats() -> None:
    """Begin the counts anew, and log each reason once more."""
    with _lock:
        _total.routed = 0
        _total.kept.clear()
        _logged.clear()


# --- the two hooks ----------------------------------------------------------------------------------------------------


class _Mode(TorchFunctionMode):
    """Sees every call of a torch function in its thread, and takes those of scaled_dot_product_attention."""

    def __init__(self, route: Route) -> None:
        super().__init__()
        self.route = route

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is BUILTIN or func is scaled_dot_product_attention:
            return _keep(func, args, kwargs) if _stays(2) else _answer(self.route, func, args, kwargs)
        if func is not F.multi_head_attention_forward or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        with _routed(self.route):  # in a thread of autograd; it calls the stand-in, and no mode is active meanwhile
            return func(*args, **kwargs)


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's function of this name, or faops where that is enabled."""
    if _stays(2):
        return _keep(_previous, args, kwargs)
    route = _state.route or _process
    # Without a route it may still be a mode that takes the call, from the builtin.
    return _original(_previous, args, kwargs) if route is None else _answer(route, _previous, args, kwargs)


def _place() -> None:
    """Put the stand-in into torch.nn.functional, if it is not there."""
    global _blocks, _previous
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _previous = getattr(F, NAME)
            setattr(F, NAME, scaled_dot_product_attention)
            if hasattr(torch.jit, "_builtins"):  # what torch.jit.script finds under the name stays PyTorch's operator
                torch.jit._builtins._register_builtin(scaled_dot_product_attention, f"aten::{NAME}")


def _remove() -> None:
    """Take the stand-in out again, if nobody needs it, and if nobody has put something of his own in its place."""
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks == 0 and getattr(F, NAME) is scaled_dot_product_attention:
            setattr(F, NAME, _previous)


def _stays(depth: int) -> bool:
    """Whether a call is PyTorch's without further question: made while answering one, or by a kernel of faops.

    ``depth`` is how many frames up the caller is found.
    """
    if torch.compiler.is_compiling():
        return False
    return _state.busy or sys._getframe(depth).f_globals.get("__name__", "").startswith(OWN_KERNELS)


# --- one call ---------------------------------------------------------------------------------------------------------


def _answer(route: Route, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The result of a call, from faops if it can, else from PyTorch."""
    if torch.compiler.is_compiling():
        call = Call(*args, **kwargs)
        return _original(original, args, kwargs) if obstacle(call) else attend(call, route.backend)
    before, _state.busy = _state.busy, True
    try:
        with torch._C.DisableTorchFunction():  # an active mode sees every attribute of a tensor that is read
            out, reason = _try(route, args, kwargs)
        _count(route, reason)
        return _original(original, args, kwargs) if out is None else out
    finally:
        _state.busy = before


def _keep(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """PyTorch's result, whatever is enabled."""
    before, _state.busy = _state.busy, True
    try:
        return _original(original, args, kwargs)
    finally:
        _state.busy = before


def _original(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    mask: Any = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    if causal_bias(mask):
        # It would recognise the function by what torch.nn.functional holds, which is the stand-in now.
        original = type(mask)._dispatch
    return original(*args, **kwargs)  # type: ignore[no-any-return]


def _try(route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, str | None]:
    """The result of faops and None, or None and why there is none."""
    try:
        call = Call(*args, **kwargs)
    except TypeError:
        return None, "arguments that the function does not have"
    if len(args) > POSITIONAL or not isinstance(call.query, Tensor):
        return None, "arguments that the function does not have"
    reason = obstacle(call)
    if reason is not None:
        return None, reason
    try:
        return attend(call, route.backend), None
    except ArgumentError as error:
        if error.argument == "backend":
            raise
        return None, f"faops refuses {error.argument}: {error.expected} is expected"
    except NoKernelError:
        if route.backend is not None:
            raise
        return None, "no kernel of faops takes this problem"


def _count(route: Route, reason: str | None) -> None:
    with _lock:
        for calls in (route.calls, _total):
            if reason is None:
                calls.routed += 1
            else:
                calls.kept[reason] += 1
        if reason is None or reason in _logged:
            return
        _logged.add(reason)
    logger.info("%s stays with PyTorch: %s", NAME, reason)
