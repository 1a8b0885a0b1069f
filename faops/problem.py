"""What is asked of a kernel, with no tensors: the attention problem and its mask band.

Notation used throughout: B batch, M query length, N key length, H query heads, Hk key/value heads, D head dim,
Dv value head dim.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch

from faops.errors import ArgumentError, PlanError

Op = Literal["forward", "backward", "decode"]
Layout = Literal["dense", "varlen", "paged"]

OPS: tuple[Op, ...] = ("forward", "backward", "decode")
LAYOUTS: tuple[Layout, ...] = ("dense", "varlen", "paged")

# dtype name -> (torch dtype, bytes an element)
DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32",
                 "fp64": "float64", "double": "float64", "fp8": "float8_e4m3fn", "e4m3": "float8_e4m3fn"}  # fmt: skip

UNLIMITED = -1


@dataclass(frozen=True)
class Band:
    """The keys a query row may see, as a band around its bottom-right aligned diagonal.

    Row i of M sees key j of N when ``i + N - M - left <= j <= i + N - M + right``; -1 is unlimited on that side.
    Causal is right = 0.
    """

    left: int = UNLIMITED
    right: int = UNLIMITED

    @staticmethod
    def of(causal: bool, window: tuple[int, int]) -> Band:
        """The band of the public arguments; causal forces the right side to 0 (source: flash-attn 2 semantics)."""
        left, right = window
        return Band(left, 0 if causal else right)

    def simplify(self, seqlen_q: int, seqlen_k: int) -> Band:
        """Drop a side that hides no key for any length up to (seqlen_q, seqlen_k), so equal problems compare equal."""
        left = UNLIMITED if self.left >= max(seqlen_k - 1, 0) else self.left
        right = UNLIMITED if self.right >= max(seqlen_q - 1, 0) else self.right
        return Band(left, right)

    @property
    def full(self) -> bool:
        return self.left == UNLIMITED and self.right == UNLIMITED

    @property
    def causal(self) -> bool:
        return self.left == UNLIMITED and self.right == 0

    def keys_of_rows(self, first: int, last: int, seqlen_q: int, seqlen_k: int) -> tuple[int, int]:
        """Half-open range of keys that any of the rows [first, last) sees."""
        shift = seqlen_k - seqlen_q
        low = 0 if self.left == UNLIMITED else max(0, first + shift - self.left)
        high = seqlen_k if self.right == UNLIMITED else min(seqlen_k, last - 1 + shift + self.right + 1)
        return low, max(low, high)

    def hides_within(self, first: int, last: int, key0: int, key1: int, seqlen_q: int, seqlen_k: int) -> bool:
        """Whether the tile rows [first, last) × keys [key0, key1) holds at least one hidden pair (an edge tile)."""
        shift = seqlen_k - seqlen_q
        if self.left != UNLIMITED and key0 < last - 1 + shift - self.left:
            return True
        return self.right != UNLIMITED and key1 - 1 > first + shift + self.right

    def visible_pairs(self, seqlen_q: int, seqlen_k: int) -> int:
        """Number of (row, key) pairs that are not hidden; exact, in O(1)."""
        shift = seqlen_k - seqlen_q

        def below(offset: int) -> int:
            """Pairs with j <= i + offset: a clipped arithmetic series."""
            first = max(0, min(seqlen_k, offset + 1))
            grow_from = max(0, -(offset + 1))  # first row that sees more than nothing
            rows = seqlen_q - grow_from
            if rows <= 0:
                return 0
            start = first if grow_from == 0 else 0
            growing = min(rows, seqlen_k - start)
            total = growing * start + growing * (growing - 1) // 2
            return total + (rows - growing) * seqlen_k

        high = seqlen_q * seqlen_k if self.right == UNLIMITED else below(shift + self.right)
        low = 0 if self.left == UNLIMITED else below(shift - self.left - 1)
        return max(0, high - low)


def broadcast_pattern(shape: tuple[int, ...] | None) -> str:
    """Which of (batch, heads, M, N) a bias or mask really varies over, such as ``"h.n"``; "" if there is none.

    Varying axes are given by their letter and broadcast ones by a dot, so (1, H, 1, N) is ``".h.n"``.
    """
    if shape is None:
        return ""
    padded = (1,) * (4 - len(shape)) + tuple(shape)
    return "".join(letter if size != 1 else "." for letter, size in zip("bhmn", padded))


@dataclass(frozen=True)
class AttentionProblem:
    """One attention call without its tensors: everything that selects or specialises a kernel.

    Lengths are the maxima in a varlen problem and the cache capacity in a decode problem. ``bias`` and ``mask`` hold
    their :func:`broadcast_pattern`. ``rotary`` is "", "interleaved" or "half".
    """

    op: Op = "forward"
    dtype: str = "float16"
    batch: int = 1
    seqlen_q: int = 1
    seqlen_k: int = 1
    heads_q: int = 1
    heads_kv: int = 1
    head_dim: int = 64
    head_dim_v: int = 64
    layout: Layout = "dense"
    band: Band = Band()
    softcap: bool = False
    alibi: bool = False
    bias: str = ""
    mask: str = ""
    sinks: bool = False
    dropout: bool = False
    need_lse: bool = False
    lse_grad: bool = False
    bias_grad: bool = False
    deterministic: bool = False
    fp8_descale: bool = False
    # decode only
    page_size: int = 0
    append: bool = False
    rotary: str = ""
    leftpad: bool = False
    batch_index: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads_q // self.heads_kv

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def flops(self) -> int:
        """Matrix FLOPs over the visible pairs: 2·(D + Dv) each forward, 2.5 × that backward (five products for two)."""
        pairs = self.batch * self.heads_q * self.band.visible_pairs(self.seqlen_q, self.seqlen_k)
        forward = 2 * pairs * (self.head_dim + self.head_dim_v)
        return forward * 5 // 2 if self.op == "backward" else forward

    def bytes_moved(self) -> int:
        """Least device traffic: each operand read once and each result written once, in bytes."""
        element = self.torch_dtype.itemsize
        q = self.batch * self.seqlen_q * self.heads_q * self.head_dim
        k = self.batch * self.seqlen_k * self.heads_kv * self.head_dim
        v = self.batch * self.seqlen_k * self.heads_kv * self.head_dim_v
        out = self.batch * self.seqlen_q * self.heads_q * self.head_dim_v
        lse = 4 * self.batch * self.seqlen_q * self.heads_q
        if self.op == "backward":
            return element * (2 * q + 2 * k + 2 * v + 2 * out) + lse
        return element * (q + k + v + out) + (lse if self.need_lse else 0)

    def bucket(self) -> AttentionProblem:
        """The problem that stands for this one in the tuning cache.

        Sizes that only scale the work (batch, lengths, window sides) go up to the next power of two; every field
        that changes generated code or the fastest config stays exact.
        """
        return replace(
            self,
            batch=_power_of_two(self.batch),
            seqlen_q=_power_of_two(self.seqlen_q),
            seqlen_k=_power_of_two(self.seqlen_k),
            band=Band(_power_of_two(self.band.left), _power_of_two(self.band.right)),
        )

    def key(self) -> str:
        """Readable, stable text of the bucketed problem; equal keys share a tuned winner."""
        bucket = self.bucket()
        parts = [
            bucket.op, bucket.layout, bucket.dtype,
            f"b{bucket.batch}", f"q{bucket.seqlen_q}", f"k{bucket.seqlen_k}",
            f"h{bucket.heads_q}x{bucket.heads_kv}", f"d{bucket.head_dim}x{bucket.head_dim_v}",
            f"w{bucket.band.left}_{bucket.band.right}",
        ]  # fmt: skip
        for item in fields(bucket)[fields_before_features:]:
            value = getattr(bucket, item.name)
            if value != item.default:
                parts.append(item.name if value is True else f"{item.name}={value}")
        return "/".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; :meth:`from_dict` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> AttentionProblem:
        values = dict(data)
        band = values.pop("band", None) or {}
        return AttentionProblem(**values, band=Band(**band))

    def __str__(self) -> str:
        """Short human form, such as ``forward bfloat16 b1 1024x1024 h32/8 d128 causal``."""
        words = [self.op, self.dtype, f"b{self.batch}", f"{self.seqlen_q}x{self.seqlen_k}"]
        words += [f"h{self.heads_q}/{self.heads_kv}", f"d{self.head_dim}"]
        if self.head_dim_v != self.head_dim:
            words[-1] += f"/{self.head_dim_v}"
        if self.layout != "dense":
            words.append(self.layout)
        if self.band.causal:
            words.append("causal")
        elif not self.band.full:
            words.append(f"window({self.band.left},{self.band.right})")
        for item in fields(self)[fields_before_features:]:
            value = getattr(self, item.name)
            if value != item.default:
                words.append(item.name if value is True else f"{item.name}={value}")
        return " ".join(words)


# Fields up to and with `band` are written by hand in key() and __str__; the rest are features, listed when set.
fields_before_features = [item.name for item in fields(AttentionProblem)].index("band") + 1


def _power_of_two(size: int) -> int:
    return size if size <= 1 else 1 << math.ceil(math.log2(size))


_SHAPE_KEYS: dict[str, str] = {
    "b": "batch", "batch": "batch", "sq": "seqlen_q", "seqlen_q": "seqlen_q", "sk": "seqlen_k", "seqlen_k": "seqlen_k",
    "h": "heads_q", "heads_q": "heads_q", "hk": "heads_kv", "heads_kv": "heads_kv", "d": "head_dim",
    "head_dim": "head_dim", "dv": "head_dim_v", "head_dim_v": "head_dim_v", "page_size": "page_size",
}  # fmt: skip
_SHAPE_FLAGS = ("softcap", "alibi", "sinks", "dropout", "need_lse", "deterministic", "append", "leftpad")


def parse_shape(text: str) -> AttentionProblem:
    """Read ``b=1,sq=4096,sk=4096,h=32,hk=8,d=128,dtype=bfloat16,causal=1`` into a problem.

    Further keys: op, layout, dv, window=L:R, bias and mask (broadcast pattern such as ``.h.n``), page_size, rotary,
    and the flags softcap, alibi, sinks, dropout, need_lse, deterministic, append, leftpad. Raises PlanError.
    """
    values: dict[str, Any] = {}
    causal, window = False, (UNLIMITED, UNLIMITED)
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, separator, raw = (piece.strip() for piece in part.partition("="))
        if not separator:
            raise PlanError(f"shape {text!r}: {part!r} is not of the form name=value")
        if name in _SHAPE_KEYS:
            values[_SHAPE_KEYS[name]] = _positive_int(text, name, raw)
        elif name == "causal":
            causal = _flag(text, name, raw)
        elif name == "window":
            window = _window(text, raw)
        elif name in _SHAPE_FLAGS:
            values[name] = _flag(text, name, raw)
        elif name == "dtype":
            values["dtype"] = dtype_name(raw)
        elif name in ("op", "layout", "bias", "mask", "rotary"):
            values[name] = raw
        else:
            known = sorted({*_SHAPE_KEYS, *_SHAPE_FLAGS, "causal", "window", "dtype", "op", "layout"})
            raise PlanError(f"shape {text!r}: unknown name {name!r}, expected one of {', '.join(known)}")
    for needed in ("seqlen_q", "heads_q", "head_dim"):
        if needed not in values:
            raise PlanError(f"shape {text!r}: {needed} is missing (sq, h and d are needed)")
    values.setdefault("seqlen_k", values["seqlen_q"])
    values.setdefault("heads_kv", values["heads_q"])
    values.setdefault("head_dim_v", values["head_dim"])
    if values["heads_q"] % values["heads_kv"]:
        raise PlanError(f"shape {text!r}: h={values['heads_q']} is not a multiple of hk={values['heads_kv']}")
    if values.get("op", "forward") not in OPS:
        raise PlanError(f"shape {text!r}: op={values['op']!r}, expected one of {', '.join(OPS)}")
    if values.get("layout", "dense") not in LAYOUTS:
        raise PlanError(f"shape {text!r}: layout={values['layout']!r}, expected one of {', '.join(LAYOUTS)}")
    _settle_pages(text, values)
    band = Band.of(causal, window).simplify(values["seqlen_q"], values["seqlen_k"])
    return AttentionProblem(**values, band=band)


def _settle_pages(text: str, values: dict[str, Any]) -> None:
    """A page size makes the layout paged, which is one of decode and has a page size."""
    if "page_size" in values:
        values.setdefault("layout", "paged")
    paged = values.get("layout") == "paged"
    if paged != ("page_size" in values):
        raise PlanError(f"shape {text!r}: layout=paged and page_size go together")
    if paged and values.get("op") != "decode":
        raise PlanError(f"shape {text!r}: a paged cache is one of op=decode, not of op={values.get('op', 'forward')}")


def dtype_name(text: str) -> str:
    """Full dtype name of ``text`` (aliases such as bf16 allowed). Raises PlanError."""
    name = DTYPE_ALIASES.get(text, text)
    if name not in DTYPES:
        raise PlanError(f"dtype {text!r}: expected one of {', '.join([*DTYPES, *DTYPE_ALIASES])}")
    return name


def require_dtype(argument: str, dtype: torch.dtype) -> str:
    """Name of a supported torch dtype. Raises ArgumentError."""
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        raise ArgumentError(argument, dtype, f"a tensor of {', '.join(DTYPES)}")
    return name


def _positive_int(text: str, name: str, raw: str) -> int:
    try:
        value = int(raw)
    except ValueError:
        raise PlanError(f"shape {text!r}: {name}={raw!r}, expected a whole number") from None
    if value < 1:
        raise PlanError(f"shape {text!r}: {name}={value}, expected at least 1")
    return value


def _flag(text: str, name: str, raw: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if raw.lower() not in values:
        raise PlanError(f"shape {text!r}: {name}={raw!r}, expected 0 or 1")
    return values[raw.lower()]


def _window(text: str, raw: str) -> tuple[int, int]:
    try:
        left, right = (int(piece) for piece in raw.split(":"))
    except ValueError:
        raise PlanError(f"shape {text!r}: window={raw!r}, expected LEFT:RIGHT, such as 256:0 or -1:128") from None
    if left < UNLIMITED or right < UNLIMITED:
        raise PlanError(f"shape {text!r}: window={raw!r}, expected sides of -1 (unlimited) or more")
    return left, right
