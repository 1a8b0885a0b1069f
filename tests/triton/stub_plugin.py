"""A plugin of pytest that installs the stub of the CUDA driver before a test module imports Triton."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import driver_stub

_FOLDER = tempfile.TemporaryDirectory(prefix="faops-stub-")  # lives as long as the process
STUB = driver_stub.install(Path(_FOLDER.name))
