"""The kernels that exist, and what each says about a problem.

A backend registers its kernels here; the dispatcher, the tuner, doctor and ``faops kernels`` all read this one list.
Third parties add a backend through the entry point group ``faops.backends``: each entry names a function without
arguments that calls :func:`register`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faops.defaults import ShippedDefault
from faops.device import DeviceProfile
from faops.errors import FaopsWarning
from faops.footprint import Footprint, Resources
from faops.problem import AttentionProblem, Op

# Modules that register the backends built into faops; each has a function register_kernels().
BUILTIN_BACKENDS: tuple[str, ...] = (
    "faops.backends.torch",
    "faops.backends.cuda_raw",
    "faops.backends.triton",
    "faops.backends.npu",
)
ENTRY_POINT_GROUP = "faops.backends"

ConfigValue = int | str | bool


class Config(Mapping[str, ConfigValue]):
    """A point of a kernel's tuning space: names to numbers, hashable and printable."""

    __slots__ = ("_hash", "_values")

    def __init__(
        self, values: Mapping[str, ConfigValue] | Iterable[tuple[str, ConfigValue]] = (), /, **more: ConfigValue
    ):
        self._values: dict[str, ConfigValue] = {**dict(values), **more}
        self._hash = hash(tuple(sorted(self._values.items())))

    def __getitem__(self, name: str) -> ConfigValue:
        return self._values[name]

    def integer(self, name: str, default: int = 0) -> int:
        """The value of ``name`` as an int; ``default`` where it is absent."""
        return int(self._values.get(name, default))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._values.items()) or "no options"


@dataclass(frozen=True)
class Accepted:
    """The kernel can run the problem."""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Rejected:
    """The kernel cannot run the problem; every reason is listed, not only the first."""

    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return False


Decision = Accepted | Rejected


def decide(reasons: Iterable[str]) -> Decision:
    """Accepted when ``reasons`` is empty, else Rejected with all of them."""
    found = tuple(reasons)
    return Rejected(found) if found else Accepted()


# Modules of a backend that say which configs there are, what they cost, and compile them ahead of time: the speed of a
# config does not hang on them. A longer list of configs must not cost anybody the winners found before.
NOT_OF_SPEED = frozenset({"space.py", "decode_space.py", "footprint.py", "ahead.py"})


def hash_of(files: Iterable[Path]) -> str:
    """Short hash of files' names and contents, in whatever order they come, those NOT_OF_SPEED left out."""
    digest = hashlib.sha256()
    for source in sorted(files):
        if source.name not in NOT_OF_SPEED:
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:12]


class Kernel(ABC):
    """One kernel: an implementation of one op by one backend.

    ``check``, ``configs`` and ``default_config`` must not import the heavy package behind the backend.
    """

    backend: str  # "torch", "cuda_raw", "triton", "npu"
    name: str  # "blockwise_forward"
    op: Op
    priority: int  # static order among kernels that accept a problem; the highest wins untuned

    @property
    def id(self) -> str:
        """Unique name, such as ``torch.blockwise_forward``."""
        return f"{self.backend}.{self.name}"

    @abstractmethod
    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        """Whether this kernel runs ``problem`` on ``device``, with every reason against it."""

    @abstractmethod
    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        """Every legal config for an accepted problem, the default among them."""

    @abstractmethod
    def default_config(self, problem: AttentionProblem, device: DeviceProfile) -> Config:
        """The config used where nothing was tuned."""

    def shipped(self, problem: AttentionProblem, device: DeviceProfile) -> ShippedDefault | None:
        """What ``default_config`` of an accepted problem starts from; None where it is the kernel's own choice."""
        return None

    @abstractmethod
    def launch(self, inputs: Any, config: Config) -> Any:
        """Run on real tensors. Inputs and results depend on the op; see :mod:`faops.inputs`."""

    def automatic(self, device: DeviceProfile) -> bool:
        """Whether this kernel may be chosen and tuned on ``device`` unasked; if not, only a forced backend gets it."""
        return True

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint | None:
        """What an accepted problem costs with ``config``, from counting alone; None where nobody has counted."""
        return None

    def compile(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Resources | None:
        """Compile what ``config`` runs, so that a later call finds it on disk; None where there is nothing to compile.

        Needs no device. Raises FaopsError where it cannot be compiled.
        """
        return None

    def source_hash(self) -> str:
        """Hash of the code whose speed the tuner measured; an entry made for other code is not served.

        That code is the kernel's module and its neighbours in the same package, or the module alone at top level.
        """
        module = Path(inspect.getfile(type(self)))
        inside_package = "." in type(self).__module__
        return hash_of(module.parent.glob("*.py") if inside_package else [module])

    def matches(self, backend: str) -> bool:
        """Whether a forced ``backend`` means this kernel: its backend, id, or the id's family ("torch.blockwise")."""
        return backend in (self.backend, self.id) or self.id.startswith(f"{backend}_")


_kernels: dict[str, Kernel] = {}
_failures: dict[str, str] = {}
_loaded = False
_loading = threading.RLock()
_generation = 0


def register(kernel: Kernel) -> None:
    """Add a kernel, or replace the one of the same id."""
    global _generation
    _kernels[kernel.id] = kernel
    _generation += 1


def unregister(kernel_id: str) -> None:
    """Remove a kernel; unknown ids are ignored."""
    global _generation
    _kernels.pop(kernel_id, None)
    _generation += 1


def generation() -> int:
    """A number that changes whenever the list of kernels does; memoised plans are valid for one generation."""
    return _generation


def kernels(op: Op | None = None) -> list[Kernel]:
    """All registered kernels (of ``op``), highest priority first."""
    _load()
    found = [kernel for kernel in _kernels.values() if op is None or kernel.op == op]
    return sorted(found, key=lambda kernel: (-kernel.priority, kernel.id))


def get(kernel_id: str) -> Kernel | None:
    """The kernel of that id, or None."""
    _load()
    return _kernels.get(kernel_id)


def backends() -> list[str]:
    """Names of the backends that have a kernel."""
    return sorted({kernel.backend for kernel in kernels()})


def failures() -> dict[str, str]:
    """Backends that could not be loaded, each with its error; `faops doctor` shows them."""
    _load()
    return dict(_failures)


def _load() -> None:
    global _loaded
    if _loaded:
        return
    with _loading:
        if _loaded:
            return
        for module in BUILTIN_BACKENDS:
            importlib.import_module(module).register_kernels()
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            try:
                entry.load()()
            except Exception as error:  # a broken third-party package must not break attention
                _failures[entry.name] = f"{type(error).__name__}: {error}"
                warnings.warn(f"backend {entry.name!r} could not be loaded: {error}", FaopsWarning, stacklevel=2)
        _loaded = True
