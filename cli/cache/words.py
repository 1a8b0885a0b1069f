"""What the commands of `faops cache` say in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faops.autotune.cache.entry import Entry


def kernels(count: int) -> str:
    return counted(count, "compiled kernel", "compiled kernels")


def counted(count: int, one: str, many: str) -> str:
    from faops import quantities

    return quantities.counted(count, one, many)


def waiting_words(count: int) -> str:
    """How many problems that programs ran untuned are still to be tuned."""
    waiting = counted(count, "problem that ran untuned waits", "problems that ran untuned wait")
    return f"{waiting} for `faops tune --from-misses`"


def readable_size(size: int) -> str:
    """Bytes with a unit that suits them."""
    for unit, bytes_each in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size} B"


def software(entry: Entry) -> str:
    return ", ".join(f"{name} {version}" for name, version in entry.environment.items())


def obstacle(entry: Entry) -> str:
    """Why a call on the entry's device does not use it; "" if it does."""
    from faops import registry
    from faops.autotune.cache import environment, serving

    if entry.environment != environment.versions():
        return "other software"
    return "" if serving(entry, registry.kernels()) else "kernel changed"


def recheck(entry: Entry) -> str:
    """Why an entry that is used should be measured again on this machine; "" if it need not."""
    from faops.autotune.cache import needs_recheck

    return needs_recheck(entry, entry.device)
