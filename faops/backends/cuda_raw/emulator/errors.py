"""What the emulator finds wrong. The numbers are those of ``enum Failure`` in csrc/machine.h."""

from __future__ import annotations

from typing import ClassVar

from faops.errors import FaopsError


class EmulatorError(FaopsError, RuntimeError):
    """The emulator cannot build or run a kernel, or found a fault in it."""


class FaultError(EmulatorError):
    """A fault of the kernel: the message names block, thread and the place in its source."""

    number: ClassVar[int] = 0


class RaceError(FaultError):
    """Two accesses to the same bytes, one of them a write, with no barrier between them."""


class OutOfBoundsError(FaultError):
    """An access outside every registered buffer, or outside shared memory."""

    number = 1


class MisalignedError(FaultError):
    """An address that is not a multiple of what its access asks for."""

    number = 2


class UninitialisedError(FaultError):
    """A read of shared memory that its block never wrote."""

    number = 3


class InFlightError(RaceError):
    """An access to shared memory that an asynchronous copy is still to write."""

    number = 4


class ReadOnlyError(FaultError):
    """A write to a buffer that the kernel may only read."""

    number = 5


class DeadlockError(FaultError):
    """Threads wait for others that have ended or wait elsewhere."""

    number = 6


class DivergentError(FaultError):
    """Lanes of a warp are in different calls that they must make together."""

    number = 7


class NeverWaitedError(FaultError):
    """A thread ended with asynchronous copies that it never committed or waited for."""

    number = 8


class UnsupportedError(FaultError):
    """An instruction that the architecture lacks, or operands that no instruction takes."""

    number = 9


class LaunchError(FaultError):
    """The launch itself is wrong: parameters of another size, no memory for the threads."""

    number = 10


class UndefinedError(FaultError):
    """Undefined behaviour or a bad access in the kernel's own C++, found by a sanitizer."""


FAULTS: dict[int, type[FaultError]] = {
    fault.number: fault
    for fault in (
        OutOfBoundsError,
        MisalignedError,
        UninitialisedError,
        InFlightError,
        ReadOnlyError,
        DeadlockError,
        DivergentError,
        NeverWaitedError,
        UnsupportedError,
        LaunchError,
    )
}
