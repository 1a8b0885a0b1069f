"""The raw CUDA forward kernels under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer: all silent.

Each block here has several blocks of keys, so that every slot of shared memory is used again, and the last of them and
of the rows is not full. That the sanitizers would speak up is what the mutants show.
"""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.tiles import make_config
from faops.registry import Config
from tests import support
from tests.cuda_raw.support import BACKEND, BFLOAT, HALF, emulated
from tests.support import check, make_case

pytestmark = pytest.mark.usefixtures("emulator_here")

CASES = [
    ("a100", HALF, 64, make_config(64, 64, 4, 2, True), ("causal",)),
    ("a100", BFLOAT, 128, make_config(64, 32, 4, 1, False), ("varlen", "bias", "dropout")),
    ("t4", HALF, 64, make_config(64, 64, 4, 1, True), ("causal",)),
    ("t4", HALF, 128, make_config(64, 16, 4, 1, False), ("varlen", "bias", "dropout")),
    ("a100", HALF, 64, make_config(128, 64, 4, 2, True), ("window", "mask", "softcap")),
    ("a100", HALF, 64, make_config(128, 32, 8, 3, False), ("causal", "alibi", "sinks")),
    ("a100", HALF, 64, make_config(64, 32, 4, 3, True), ("varlen", "window")),
    ("a100", BFLOAT, 40, make_config(64, 64, 2, 1, True), ("gqa", "value_dim", "mask")),
    ("a100", HALF, 128, make_config(128, 64, 4, 1, False), ("causal", "dropout")),
    ("a100", HALF, 256, make_config(64, 32, 4, 1, False), ("causal",)),
    ("t4", HALF, 64, make_config(128, 64, 4, 1, True), ("window", "mask", "softcap")),
    ("t4", HALF, 40, make_config(64, 32, 2, 1, True), ("gqa", "value_dim", "sinks")),
    ("t4", HALF, 128, make_config(128, 32, 4, 1, False), ("causal", "dropout")),
    ("t4", HALF, 256, make_config(64, 16, 4, 1, False), ("causal",)),
]


def cases(short: list[int]) -> pytest.MarkDecorator:
    """Parametrises over all cases; the numbers in ``short`` are left for the short run."""
    found = [
        pytest.param(*case, marks=[] if number in short else pytest.mark.full) for number, case in enumerate(CASES)
    ]
    return pytest.mark.parametrize(("card", "dtype", "head_dim", "config", "features"), found, ids=str)


@cases(short=[0, 3])
def test_no_races(card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...]) -> None:
    run_silently("thread", card, dtype, head_dim, config, features)


@cases(short=[1])
def test_no_undefined_behaviour(
    card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...]
) -> None:
    run_silently("address", card, dtype, head_dim, config, features)


def run_silently(
    mode: str, card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...]
) -> None:
    heads = {} if "gqa" in features else {"heads_q": 2, "heads_kv": 2}
    tile_m, tile_n = config.integer("tile_m"), config.integer("tile_n")
    shape = {"seqlen_q": tile_m + 6, "seqlen_k": 4 * tile_n + 6, "head_dim": head_dim, "head_dim_v": head_dim}
    case = make_case(*features, dtype=dtype, batch=1, **shape, **heads)
    if "window" in features:
        case.options["window"] = (3 * tile_n, tile_n)
    with pytest.MonkeyPatch.context() as patch, emulated(card, config, mode) as launches:
        # Random lengths may leave the longest rows without keys, and nothing to race for.
        patch.setattr(support, "random_lengths", lambda count, longest: [longest, 0, longest // 2, 3])
        check(case, BACKEND, backward=False)
    assert len(launches) == 1
