"""What the emulator finds wrong. The numbers are those of ``enum Failure`` in csrc/machine.h."""

from __future__ import annotations

from typing import ClassVar

from faops.errors import FaopsError


class EmulatorError(FaopsError, RuntimeError):
    """The emulator cannot build or run a kernel, or found a fault in it."""


class KernelFault(EmulatorError):
    """A fault of the kernel: the message names block, thread and the place in its source."""

    number: ClassVar[int] = 0


class OutOfBounds(KernelFault):
    """An access outside every registered buffer, or outside shared memory."""

    number = 1


class Misaligned(KernelFault):
    """An address that is not a multiple of what its access asks for."""

    number = 2


class Uninitialised(KernelFault):
    """A read of shared memory that its block never wrote."""

    number = 3


class InFlight(KernelFault):
    """An access to shared memory that an asynchronous copy is still to write."""

    number = 4


class ReadOnly(KernelFault):
    """A write to a buffer that the kernel may only read."""

    number = 5


class Deadlock(KernelFault):
    """Threads wait for others that have ended or wait elsewhere."""

    number = 6


class Divergent(KernelFault):
    """Lanes of a warp are in different calls that they must make together."""

    number = 7


class NeverWaited(KernelFault):
    """A thread ended with asynchronous copies that it never committed or waited for."""

    number = 8


class Unsupported(KernelFault):
    """An instruction that the architecture lacks, or operands that no instruction takes."""

    number = 9


class LaunchFault(KernelFault):
    """The launch itself is wrong: parameters of another size, no memory for the threads."""

    number = 10


class Race(KernelFault):
    """Two accesses to the same bytes, one of them a write, with no barrier between them."""


class Undefined(KernelFault):
    """Undefined behaviour or a bad access in the kernel's own C++, found by a sanitizer."""


FAULTS: dict[int, type[KernelFault]] = {
    fault.number: fault
    for fault in (
        OutOfBounds,
        Misaligned,
        Uninitialised,
        InFlight,
        ReadOnly,
        Deadlock,
        Divergent,
        NeverWaited,
        Unsupported,
        LaunchFault,
    )
}
