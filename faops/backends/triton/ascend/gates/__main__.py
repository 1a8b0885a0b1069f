"""python -m faops.backends.triton.ascend.gates"""

from __future__ import annotations

import contextlib
import sys

from faops.backends.triton.ascend.gates.command import main

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
