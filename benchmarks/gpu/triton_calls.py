"""One attention call through a kernel as the registry launches it, held to the accuracy rule of the tests.

The kernel is Triton's for the call's op, unless the trial names another.
"""

from __future__ import annotations

import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.attention import attention_inputs
from benchmarks.gpu.outcome import SkipError
from faops import dispatch, registry
from faops.device import DeviceProfile, detect, known
from faops.errors import NoKernelError
from faops.inputs import BackwardInputs
from faops.layout import conform
from faops.problem import Op
from faops.registry import Config, Kernel
from tests.support import assert_accurate, gradients, make_case, make_inputs, run_reference

BACKEND = "triton"
Results = Sequence[Tensor | None]


@dataclass(frozen=True)
class Trial:
    """A random call with ``features`` through the kernel of ``op``; its default config where None.

    ``forward``, of a backward only: the backend that out and lse come from.
    """

    op: Op
    dtype: torch.dtype
    features: tuple[str, ...] = ()
    config: Config | None = None
    shape: Mapping[str, int] = field(default_factory=dict)
    forward: str = BACKEND
    seed: int = 0
    kernel: str = ""  # id of a kernel that is not Triton's

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        words = [self.kernel or self.op, dtype, "+".join(self.features) or "plain"]
        words += [f"{name}={size}" for name, size in self.shape.items()]
        if self.op == "backward" and self.forward != BACKEND:
            words.append(f"after {self.forward}")
        return " ".join(words) + (f" [{self.config}]" if self.config else "")


class Place(NamedTuple):
    """Where tensors are, and the GPU that they are on or, interpreted, meant for."""

    device: torch.device
    profile: DeviceProfile

    @staticmethod
    def of(card: str) -> Place:
        """The CPU in place of a ``card``, or the current CUDA device where that is ""."""
        if card:
            return Place(torch.device("cpu"), known(card))
        return Place.on(torch.device("cuda", torch.cuda.current_device()))

    @staticmethod
    def on(device: torch.device) -> Place:
        return Place(device, detect(device))


def kernel_of(op: Op, name: str = "") -> Kernel:
    """The kernel with id ``name``, or Triton's for ``op``."""
    kernel = registry.get(name or f"{BACKEND}.{op}")
    assert kernel is not None
    return kernel


class Call(ABC):
    """A call with its tensors on a device, ready to run; what it computed lies in ``results`` afterwards."""

    op: Op

    def __init__(self, inputs: Any, config: Config | None, place: Place, kernel: str = "") -> None:
        self.inputs = inputs
        self.place = place
        self.kernel = kernel_of(self.op, kernel)
        self.config = config or self.kernel.default_config(inputs.problem(), place.profile)
        self.results: Results = ()

    def run(self) -> None:
        self.results = self.kernel.launch(self.inputs, self.config)

    @abstractmethod
    def check(self, results: Results, context: str) -> None:
        """Hold ``results`` to the accuracy rule; raises AssertionError where they miss it."""

    def clear(self) -> None:
        """Poison the results."""
        poison(self.results)

    def operands(self) -> list[Tensor]:
        """Every tensor that the call reads."""
        return tensors_of(self.inputs)

    def use_another_config(self, number: int) -> None:
        """Take config ``number`` of those that are not the default."""
        configs = self.kernel.configs(self.inputs.problem(), self.place.profile)
        self.config = [config for config in configs if config != self.config][number]

    def spread(self, far: Callable[[Tensor], Tensor]) -> None:
        """Put copies that ``far`` makes in place of q, keys and values."""
        inputs = self.inputs.forward if self.op == "backward" else self.inputs
        for name in ("q", "k_cache", "v_cache") if self.op == "decode" else ("q", "k", "v"):
            setattr(inputs, name, far(getattr(inputs, name)))

    @property
    def repeatable(self) -> bool:
        return not self.config.get("atomic_dq", False)


class ForwardCall(Call):
    """Dense or varlen; results are (out, lse)."""

    op = "forward"

    def __init__(self, trial: Trial, place: Place) -> None:
        _seed(trial)
        self.case = make_case(*trial.features, dtype=trial.dtype, **trial.shape)
        self.tensors = make_inputs(self.case)
        self.seed = random.getrandbits(31)
        super().__init__(attention_inputs(self.case, self.tensors, self.seed, place.device), trial.config, place)

    def check(self, results: Results, context: str) -> None:
        exact = run_reference(self.case, self.tensors.fresh(torch.float64), torch.float64, self.seed)
        plain = run_reference(self.case, self.tensors.fresh(), self.case.dtype, self.seed)
        out, lse = (tensor.cpu() for tensor in results if tensor is not None)
        assert_accurate("out", self.public(out), exact[0].detach(), plain[0].detach(), context)
        assert_accurate("lse", lse, exact[1].detach(), plain[1].detach(), context)

    def public(self, tensor: Tensor) -> Tensor:
        """A tensor of a kernel, whose heads come after the tokens, in the layout of the case; and the other way."""
        return tensor.transpose(-3, -2) if self.case.layout == "bhsd" else tensor


class BackwardCall(Call):
    """Starts from (out, lse) of a forward that ran before; results are (dq, dk, dv, dbias, dsinks)."""

    op = "backward"

    def __init__(self, trial: Trial, place: Place) -> None:
        first = self.first = ForwardCall(replace(trial, op="forward", config=None), place)
        if trial.forward != BACKEND:
            first.kernel, first.config = _planned(first, trial.forward)
        first.run()
        out, lse = first.results
        assert out is not None and lse is not None
        self.dout = torch.randn(first.public(out).shape).to(trial.dtype)
        self.dlse = torch.randn(lse.shape, dtype=lse.dtype) if first.case.lse_grad else None
        inputs = BackwardInputs(
            dout=first.public(self.dout.to(place.device)),
            dlse=None if self.dlse is None else self.dlse.to(place.device),
            forward=first.inputs, out=conform(out, first.inputs.q), lse=lse,
            bias_grad=first.inputs.bias is not None, sinks_grad=first.inputs.sinks is not None,
        )  # fmt: skip
        super().__init__(inputs, trial.config, place)

    def check(self, results: Results, context: str) -> None:
        case, seed = self.first.case, self.first.seed
        exact, plain = self.first.tensors.fresh(torch.float64), self.first.tensors.fresh()
        exact_out, exact_lse = run_reference(case, exact, torch.float64, seed)
        plain_out, plain_lse = run_reference(case, plain, case.dtype, seed)
        expected = gradients(exact, exact_out, exact_lse, self.dout, self.dlse)
        unfused = gradients(plain, plain_out, plain_lse, self.dout, self.dlse)
        for name, result in zip(("q", "k", "v", "bias", "sinks"), results):
            assert (result is None) == (name not in expected), f"d{name} is there unasked or missing: {context}"
            if result is None:
                continue
            actual, noise = result.cpu(), 0.0
            if name == "bias" and actual.shape[-1] == 1:
                # As in tests.support: the exact gradient of such a bias is 0, but for what rounding out leaves.
                noise = 8 * torch.finfo(case.dtype).eps * float((exact_out.detach() * self.dout).norm())
            actual = self.first.public(actual) if name in ("q", "k", "v") else actual
            assert_accurate(f"d{name}", actual, expected[name], unfused[name], context, noise)


def _planned(call: Call, backend: str) -> tuple[Kernel, Config]:
    """What ``backend`` would run a forward with. Raises SkipError where it cannot."""
    try:
        plan = dispatch.plan(call.inputs.problem(), detect(call.place.device), backend)
    except NoKernelError as error:
        raise SkipError(str(error)) from error
    return plan.kernel, plan.config


def prepare(trial: Trial, place: Place) -> Call:
    """Draw the call. The same trial gives the same call anywhere; a backward's forward runs."""
    from benchmarks.gpu.triton_decode import DecodeCall  # which is a Call, too

    if trial.op == "decode":
        return DecodeCall(trial, place)
    return ForwardCall(trial, place) if trial.op == "forward" else BackwardCall(trial, place)


def hold(trial: Trial, place: Place) -> dict[str, Any]:
    """Run the trial; raises AssertionError where it misses the accuracy rule or gives other bits a second time."""
    with poisoned():
        call = prepare(trial, place)
        call.run()
        first = copies(call.results)
        if call.repeatable:
            call.run()
    synchronise(place.device)
    call.check(first, str(trial))
    assert equal(first, copies(call.results)), f"a second launch gives other bits: {trial}"
    return {}


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors of a call's inputs, in the order of their fields; a backward's forward among them."""
    found: list[Tensor] = []
    for item in fields(inputs):
        value = getattr(inputs, item.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif item.name == "forward":
            found += tensors_of(value)
    return found


def poison(results: Results) -> None:
    for tensor in results:
        if tensor is not None:
            tensor.fill_(torch.nan)


def copies(results: Results) -> list[Tensor | None]:
    return [None if tensor is None else tensor.clone() for tensor in results]


def equal(one: Results, other: Results) -> bool:
    """Whether two sets of results are the same bits, absent ones included."""
    return len(one) == len(other) and all(
        a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(one, other)
    )


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold NaN, which every accuracy check finds, instead of what lay there before."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(64).isnan().all(), "new memory is not filled"
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seed(trial: Trial) -> None:
    torch.manual_seed(trial.seed)
    random.seed(trial.seed)
