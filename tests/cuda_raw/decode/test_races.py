"""The KV-cache kernels under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer: all silent.

Each call has several tiles of keys in every split, so that every slot of shared memory is used again.
"""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.decode_tiles import make_config
from faops.registry import Config
from tests.cuda_raw.decode.support import check_on
from tests.cuda_raw.support import BFLOAT, HALF
from tests.kvcache import make_call

pytestmark = pytest.mark.usefixtures("emulator_here")

Case = tuple[str, torch.dtype, int, Config, tuple[str, ...], int]
CASES: list[Case] = [  # card, dtype, head dim, config, features, query tokens
    ("a100", HALF, 64, make_config(16, 64, 4, 2, True), ("append", "rotary_half", "paged"), 1),
    ("t4", HALF, 64, make_config(16, 64, 4, 1, True), ("append", "rotary", "causal"), 3),
    ("a100", BFLOAT, 32, make_config(64, 32, 4, 2, False), ("append", "leftpad", "causal"), 40),
    ("t4", HALF, 32, make_config(64, 32, 4, 1, True), ("paged", "window", "sinks"), 40),
    ("a100", HALF, 40, make_config(16, 64, 4, 3, True), ("batch_idx", "mask", "softcap"), 1),
    ("a100", HALF, 128, make_config(32, 32, 2, 2, True), ("append", "alibi", "bias"), 5),
    ("a100", HALF, 256, make_config(16, 32, 2, 1, True), ("paged", "sinks"), 1),
    ("t4", HALF, 128, make_config(16, 32, 2, 1, True), ("append", "mask"), 1),
]


def cases(short: list[int]) -> pytest.MarkDecorator:
    """Parametrises over all cases; the numbers in ``short`` are left for the short run."""
    found = [
        pytest.param(*case, marks=[] if number in short else pytest.mark.full) for number, case in enumerate(CASES)
    ]
    return pytest.mark.parametrize(("card", "dtype", "head_dim", "config", "features", "M"), found, ids=str)


@cases(short=[0])
def test_no_races(
    card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...], M: int
) -> None:
    run_silently("thread", card, dtype, head_dim, config, features, M)


@cases(short=[])
def test_no_undefined_behaviour(
    card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...], M: int
) -> None:
    run_silently("address", card, dtype, head_dim, config, features, M)


def run_silently(
    mode: str, card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...], M: int
) -> None:
    keys = 6 * config.integer("tile_n") + 5
    call = make_call(*features, dtype=dtype, M=M, keys=keys, heads_kv=1, group=3, batch=1, dim=head_dim, dim_v=head_dim)
    if "window" in features:
        call.options["window"] = (keys, M)
    call.options["num_splits"] = 2
    check_on(card, call, config, mode)
