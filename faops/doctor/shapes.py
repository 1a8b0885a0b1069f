"""Problems as the option --shape of `faops tune`, so that a fix can name what is to be tuned again."""

from __future__ import annotations

from collections.abc import Iterable

from faops.errors import PlanError
from faops.problem import AttentionProblem, parse_shape

LIMIT = 8  # shapes in one command
# fields of a problem -> their names in a shape; those that are not here have the same name
NAMES = {
    "batch": "b", "seqlen_q": "sq", "seqlen_k": "sk", "heads_q": "h", "heads_kv": "hk", "head_dim": "d",
    "head_dim_v": "dv",
}  # fmt: skip
ALWAYS = ("dtype", "seqlen_q", "seqlen_k", "heads_q", "heads_kv", "head_dim", "head_dim_v")
TORCH_TYPES = {"cpu": "cpu", "ascend": "npu", "apple": "mps"}  # by the vendor that a device's identity begins with


def tune_command(problems: Iterable[AttentionProblem], identity: str) -> str:
    """The command that tunes ``problems``, the first few of them, on the device of that identity; "" where a shape can
    say none of them."""
    shapes = [text for problem in problems if (text := shape(problem))][:LIMIT]
    device = TORCH_TYPES.get(identity.partition("_")[0], "cuda")
    return f"faops tune --device {device} --shape {' --shape '.join(shapes)}" if shapes else ""


def shape(problem: AttentionProblem) -> str:
    """What :func:`~faops.problem.parse_shape` reads as ``problem``, or one with the same key; "" if nothing."""
    usual = AttentionProblem()
    parts = []
    for name, value in vars(problem).items():
        if name == "band":
            parts += [] if value.full else ["causal=1"] if value.causal else [f"window={value.left}:{value.right}"]
        elif name in ALWAYS or value != getattr(usual, name):
            parts.append(f"{NAMES.get(name, name)}={int(value) if isinstance(value, bool) else value}")
    text = ",".join(parts)
    try:
        return text if parse_shape(text).key() == problem.key() else ""
    except PlanError:
        return ""
