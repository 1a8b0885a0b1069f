"""Every error faops raises on purpose. All derive from :class:`FaopsError`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faops.problem import AttentionProblem


class FaopsError(Exception):
    """Base class of all errors raised by faops."""


class FaopsWarning(UserWarning):
    """Base class of all warnings given by faops."""


class ArgumentError(FaopsError, ValueError):
    """An argument of a public call is wrong.

    The message always names the argument, what it was and what it must be.
    """

    def __init__(self, argument: str, value: object, expected: str) -> None:
        self.argument = argument
        self.value = value
        self.expected = expected
        super().__init__(f"{argument}: got {value}, expected {expected}")


class NoKernelError(FaopsError, RuntimeError):
    """No registered kernel (or none of the forced backend) can run a problem."""

    def __init__(self, problem: AttentionProblem, device: str, rejections: dict[str, tuple[str, ...]]) -> None:
        self.problem = problem
        self.rejections = rejections
        lines = [f"no kernel can run {problem} on {device}"]
        for kernel, reasons in rejections.items():
            lines.append(f"  {kernel}: {'; '.join(reasons)}")
        if not rejections:
            lines.append("  no kernel is registered for it; `faops doctor` shows which backends load")
        super().__init__("\n".join(lines))


class OutOfPagesError(FaopsError, RuntimeError):
    """A paged cache has fewer free pages than a call needs. The call has changed nothing."""

    def __init__(self, needed: int, free: int) -> None:
        self.needed = needed
        self.free = free
        super().__init__(f"{needed} {'page' if needed == 1 else 'pages'} needed, {free} free")


class SettingsError(FaopsError, ValueError):
    """A setting (environment variable or faops.yaml) has an impossible value."""


class CacheError(FaopsError):
    """The tuning cache cannot be read or written as asked."""


class PlanError(FaopsError, ValueError):
    """A tuning plan, model name or shape description cannot be understood."""


class DefaultsError(FaopsError, RuntimeError):
    """The file of shipped defaults is broken, or lacks a row that a kernel needs."""


class TuningError(FaopsError):
    """Tuning could not finish."""


class CrashedError(TuningError):
    """The process that measured or compiled a config ended. ``output`` is the last of what it wrote."""

    def __init__(self, message: str, output: str = "") -> None:
        self.output = output
        super().__init__(message)


class HangError(CrashedError):
    """The process that measured or compiled a config gave no answer in time, and was ended."""


class CompileError(FaopsError, RuntimeError):
    """A kernel does not compile.

    ``source`` is the full text with numbered lines, headers included; ``log`` is what the compiler said.
    """

    def __init__(self, message: str, source: str = "", log: str = "") -> None:
        self.source = source
        self.log = log
        super().__init__(message)


class UnavailableError(FaopsError, RuntimeError):
    """A kernel that accepted a problem turned out unable to run on this machine; the call goes to the next one."""


class CaptureError(FaopsError, RuntimeError):
    """A kernel was called for the first time while a CUDA graph was being captured, and cannot be loaded then."""


class LaunchError(FaopsError, RuntimeError):
    """The driver refused a launch: because of the launch, or of an earlier kernel that went wrong on the device."""


class DaemonError(FaopsError):
    """The daemon cannot be started, reached or told to do something."""


class NotRunningError(DaemonError):
    """No daemon of this user runs on this host."""
