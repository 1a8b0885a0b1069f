"""What a run of the suite was asked for, as it goes to the processes that do the work."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

SECTIONS = (
    "wrappers", "triton_correctness", "correctness", "raw_decode", "graph", "timing", "triton_timing", "decode_timing",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """``card`` is an emulated card's short name, or "" for the CUDA device. ``seed`` draws all random inputs.

    A section may be cut into ``parts``, of which a process does number ``part``.
    """

    quick: bool = False
    card: str = ""
    seed: int = 0
    part: int = 0
    parts: int = 1

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def of_text(text: str) -> Options:
        return Options(**json.loads(text))
