"""When `import torch` fails because of what it imports by itself.

A package such as torch-npu registers an entry point in the group torch.backends, and PyTorch imports it as a part of
`import torch`. Where that fails, so does every program that uses PyTorch; this is what the command line does about it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

GROUP = "torch.backends"
SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # of PyTorch; "1" by default, anything else turns it off
LIMIT_SECONDS = 120.0  # for an import that also starts the runtime of a device
FAILED = "Failed to load the backend extension: "  # how PyTorch's own message begins


def spare_this_process() -> None:
    """Turn loading off for this process and its children if it fails, after an import of torch in one of its own.

    The import may also crash or hang. Nothing is tried where no package asks to be loaded.
    """
    if os.environ.get(SWITCH, "1") == "1" and metadata.entry_points(group=GROUP) and not _works():
        os.environ[SWITCH] = "0"


def _works() -> bool:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import torch"], stdin=quiet, stdout=quiet, stderr=quiet, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def explained(error: BaseException) -> str:
    """What to tell of an error that ended `import torch` in this way; "" for any other error."""
    if not isinstance(error, RuntimeError) or not str(error).startswith(FAILED):
        return ""
    name = str(error).removeprefix(FAILED).partition(". ")[0]
    cause = error.__cause__ or error
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())
    return (
        f"PyTorch cannot be imported: it loads {name} by itself, and that fails: {reason}\n"
        f"fix: faops doctor (finds what is wrong), or do without {name}: {SWITCH}=0 faops ..."
    )
