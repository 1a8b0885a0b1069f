"""The process that tries a section's items, one after the other: python -m benchmarks.gpu.worker (by the suite only).

What it finds goes to a file as lines of JSON: {"begin": n} before item n, its outcome after it. A kernel that faults
takes the whole CUDA context with it, so the process then ends and the suite starts another at the next item.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from benchmarks.gpu.options import Options
from benchmarks.gpu.outcome import Item, Outcome, perform

LOST = 3  # exit status: the device no longer answers this process
LOST_DETAIL = "the CUDA context did not survive it"


def main(arguments: Sequence[str]) -> int:
    section, text, first, deadline, path = arguments
    module = importlib.import_module(section if "." in section else f"benchmarks.gpu.{section}")
    options = Options.of_text(text)
    items: list[Item] = module.items(options)[options.part :: options.parts]
    with Path(path).open("a", encoding="utf-8") as file:
        write(file, json.dumps({"items": len(items)}))
        for number, item in enumerate(items):
            if number < int(first):
                continue
            if time.time() >= float(deadline):
                write(file, Outcome(section, item.name, "not run", "the time was up").line())
                continue
            write(file, json.dumps({"begin": number, "name": item.name}))
            outcome = perform(section, item)
            write(file, outcome.line())
            if outcome.bad and not device_answers():
                return LOST
    return 0


def write(file: IO[str], line: str) -> None:
    file.write(line + "\n")
    file.flush()


def device_answers() -> bool:
    """Whether CUDA still works in this process; True where it was never used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(2, device="cuda").sum().item() == 2.0)
    except RuntimeError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
