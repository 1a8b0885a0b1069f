"""The raw CUDA forward kernels under ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer: all silent.

Each block here has several blocks of keys, so that every slot of shared memory is used again, and the last of them and
of the rows is not full. That the sanitizers would speak up is what the mutants show.
"""

from __future__ import annotations

import pytest
import torch

from faops.backends.cuda_raw.space import make_config
from faops.registry import Config
from tests.cuda_raw.support import BACKEND, BFLOAT, HALF, emulated
from tests.support import check, make_case

pytestmark = pytest.mark.usefixtures("emulator_here")

full = pytest.mark.full
CASES = [
    ("a100", HALF, 64, make_config(64, 64, 4, 2, True), ("causal",)),
    ("a100", BFLOAT, 128, make_config(64, 32, 4, 1, False), ("varlen", "bias", "dropout")),
    ("t4", HALF, 64, make_config(64, 64, 4, 1, True), ("causal",)),
    ("t4", HALF, 128, make_config(64, 16, 4, 1, False), ("varlen", "bias", "dropout")),
    pytest.param("a100", HALF, 64, make_config(128, 64, 4, 2, True), ("window", "mask", "softcap"), marks=full),
    pytest.param("a100", HALF, 64, make_config(128, 32, 8, 3, False), ("causal", "alibi", "sinks"), marks=full),
    pytest.param("a100", HALF, 64, make_config(64, 32, 4, 3, True), ("varlen", "window"), marks=full),
    pytest.param("a100", BFLOAT, 40, make_config(64, 64, 2, 1, True), ("gqa", "value_dim", "mask"), marks=full),
    pytest.param("a100", HALF, 128, make_config(128, 64, 4, 1, False), ("causal", "dropout"), marks=full),
    pytest.param("a100", HALF, 256, make_config(64, 32, 4, 1, False), ("causal",), marks=full),
    pytest.param("t4", HALF, 64, make_config(128, 64, 4, 1, True), ("window", "mask", "softcap"), marks=full),
    pytest.param("t4", HALF, 40, make_config(64, 32, 2, 1, True), ("gqa", "value_dim", "sinks"), marks=full),
    pytest.param("t4", HALF, 128, make_config(128, 32, 4, 1, False), ("causal", "dropout"), marks=full),
    pytest.param("t4", HALF, 256, make_config(64, 16, 4, 1, False), ("causal",), marks=full),
]


@pytest.mark.parametrize(("card", "dtype", "head_dim", "config", "features"), CASES, ids=str)
@pytest.mark.parametrize("mode", ["thread", "address"])
def test_sanitizers_are_silent(
    mode: str, card: str, dtype: torch.dtype, head_dim: int, config: Config, features: tuple[str, ...]
) -> None:
    heads = {} if "gqa" in features else {"heads_q": 2, "heads_kv": 2}
    tile_m, tile_n = config.integer("tile_m"), config.integer("tile_n")
    shape = {"seqlen_q": tile_m + 6, "seqlen_k": 4 * tile_n + 6, "head_dim": head_dim, "head_dim_v": head_dim}
    case = make_case(*features, dtype=dtype, batch=1 + ("varlen" in features), **shape, **heads)
    if "window" in features:
        case.options["window"] = (3 * tile_n, tile_n)
    with emulated(card, config, mode) as launches:
        check(case, BACKEND, backward=False)
    assert len(launches) == 1
