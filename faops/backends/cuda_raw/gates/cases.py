"""The kernels that the gates look at: every combination of tile config, head dim, dtype, feature and target."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from faops.architectures import KNOWN_DEVICES, cuda_number
from faops.backends.cuda_raw.sample import family_of
from faops.backends.cuda_raw.space import space
from faops.backends.cuda_raw.specialize import Specialised, specialise
from faops.backends.cuda_raw.targets import Target
from faops.backends.cuda_raw.tiles import SM75, Family
from faops.device import DeviceProfile, known
from faops.inputs import AttentionInputs
from faops.layout import empty_lse, empty_out
from faops.operands import Operands
from faops.registry import Config

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
HEAD_DIMS = (32, 64, 96, 128, 160, 192, 256)
FEATURES = ("causal", "full", "window", "softcap", "alibi", "bias", "mask", "sinks", "dropout", "varlen")
WINDOW = 48  # keys to the left
LARGE_ROWS, SMALL_ROWS = 4096, 16  # query rows that ask for the large default tiles, and for the small ones
MANY_HEADS = 64
SAMPLE_SEQLEN = 256  # several tiles, and more keys than the window


@dataclass(frozen=True)
class Case:
    """One kernel for one target. ``feature`` is one of FEATURES; all but "full" are causal."""

    target: Target
    config: Config
    head_dim: int
    dtype: torch.dtype
    feature: str = "causal"

    @property
    def family(self) -> Family:
        return family_of(self.target)

    @property
    def device(self) -> DeviceProfile:
        return device_of(self.target)

    @property
    def is_default(self) -> bool:
        """Whether the kernel takes this config unless tuned."""
        return self.config in default_configs(self.target, self.head_dim, self.feature)

    @property
    def config_text(self) -> str:
        """The config in short: rows x keys, warps, stages, and Q where the queries stay in registers."""
        tile = "{}x{}".format(self.config["tile_m"], self.config["tile_n"])
        queries = "Q" if self.config["q_in_registers"] else "-"
        return "{} w{} s{} {}".format(tile, self.config["warps"], self.config["stages"], queries)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.target} d{self.head_dim} {dtype} {self.feature} {self.config_text}"

    def call(self, seqlen: int, heads: int) -> tuple[AttentionInputs, Operands]:
        """Random tensors of one call of batch 1, whose keys and values have one head."""
        return make_call(self.head_dim, self.dtype, self.feature, seqlen, heads)

    def kernel(self) -> Specialised:
        inputs, operands = _sample(self.head_dim, self.dtype, self.feature)
        return specialise(self.family, inputs, operands, self.config)


@functools.lru_cache(maxsize=256)
def _sample(head_dim: int, dtype: torch.dtype, feature: str) -> tuple[AttentionInputs, Operands]:
    return make_call(head_dim, dtype, feature, SAMPLE_SEQLEN, 1)


def make_call(
    head_dim: int, dtype: torch.dtype, feature: str, seqlen: int, heads: int
) -> tuple[AttentionInputs, Operands]:
    """Random tensors of a call of batch 1 with ``heads`` query heads and one head of keys and values."""
    varlen = feature == "varlen"
    leading = (seqlen,) if varlen else (1, seqlen)
    q = torch.randn(*leading, heads, head_dim).to(dtype)
    k, v = (torch.randn(*leading, 1, head_dim).to(dtype) for _ in range(2))
    ends = torch.tensor([0, seqlen], dtype=torch.int32) if varlen else None
    inputs = AttentionInputs(
        q=q,
        k=k,
        v=v,
        alibi_slopes=torch.rand(heads) if feature == "alibi" else None,
        bias=torch.randn(1, heads, seqlen, seqlen).to(dtype) if feature == "bias" else None,
        mask=torch.rand(1, heads, seqlen, seqlen) > 0.25 if feature == "mask" else None,
        sinks=torch.randn(heads) if feature == "sinks" else None,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        rng=torch.tensor([1, 2]) if feature == "dropout" else None,
        max_seqlen_q=seqlen,
        max_seqlen_k=seqlen,
        window_left=WINDOW if feature == "window" else -1,
        window_right=-1 if feature == "full" else 0,
        scale=head_dim**-0.5,
        softcap=30.0 if feature == "softcap" else 0.0,
        dropout_p=0.25 if feature == "dropout" else 0.0,
        deterministic=False,
        need_lse=True,
        backend="",
    )
    out: Tensor = empty_out(q, head_dim)
    return inputs, Operands.of(inputs, out, empty_lse(q))


def device_of(target: Target) -> DeviceProfile:
    """A well-known device that runs the code of ``target``."""
    number = cuda_number(target.name)
    name = next(name for name, device in KNOWN_DEVICES.items() if device.arch == f"sm_{number}")
    return known(name)


def default_configs(target: Target, head_dim: int, feature: str = "causal") -> list[Config]:
    """What the kernel takes unless tuned: the config for many query rows, then the one for few, if they differ."""
    from faops.backends.cuda_raw.sm75_forward import Sm75Forward
    from faops.backends.cuda_raw.sm80_forward import Sm80Forward

    kernel = Sm75Forward() if family_of(target) is SM75 else Sm80Forward()
    inputs, _ = _sample(head_dim, torch.float16, feature)
    problem = inputs.problem()
    problems = (replace(problem, heads_q=MANY_HEADS, seqlen_q=rows, seqlen_k=rows) for rows in (LARGE_ROWS, SMALL_ROWS))
    return list(dict.fromkeys(kernel.tiles(problem, device_of(target)) for problem in problems))


def dtypes(target: Target) -> list[torch.dtype]:
    """What the target's kernels compute in."""
    return [torch.float16] if family_of(target) is SM75 else [torch.float16, torch.bfloat16]


def defaults(targets: Sequence[Target], head_dims: Sequence[int], features: Sequence[str]) -> Iterator[Case]:
    """Every feature with the default configs."""
    for target in targets:
        for head_dim in head_dims:
            for feature in features:
                for config in default_configs(target, head_dim, feature):
                    for dtype in dtypes(target):
                        yield Case(target, config, head_dim, dtype, feature)


def everything(targets: Sequence[Target], head_dims: Sequence[int]) -> Iterator[Case]:
    """Every config of the tuning space in causal float16, and every feature and dtype with the default configs."""
    seen = set()
    for case in defaults(targets, head_dims, FEATURES):
        seen.add(case)
        yield case
    for target in targets:
        for head_dim in head_dims:
            for config in space(family_of(target), head_dim, head_dim, device_of(target)):
                if (case := Case(target, config, head_dim, torch.float16)) not in seen:
                    yield case
