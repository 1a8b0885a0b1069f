"""The dropout generator: published vectors, statistics, and independence of how the grid is cut."""

from __future__ import annotations

import math
import random

import pytest
import torch

from faops.philox import MASK32, keep_tile, philox4x32, threshold

# Counter, key and output words of philox4x32 with 10 rounds: known-answer vectors of the Random123 distribution.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox_python(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds in Python integers, from the definition in the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK32, (a >> 32) ^ c[3] ^ k[1], a & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("tensor_key", [False, True])
def test_known_answers(counter: str, key: str, expected: str, tensor_key: bool) -> None:
    c = tuple(torch.tensor([word]) for word in words(counter))
    k = tuple(torch.tensor(word) if tensor_key else word for word in words(key))
    assert [int(word) for word in philox4x32(c, k)] == words(expected)


def test_agrees_with_python_integers_on_a_broadcast_grid() -> None:
    key = (random.getrandbits(32), random.getrandbits(32))
    c0 = torch.randint(0, 2**32, (5,))
    c1 = torch.randint(0, 2**32, (3, 1))
    c2 = torch.randint(0, 2**32, (2, 1, 1))
    c3 = torch.tensor(random.getrandbits(32))
    found = philox4x32((c0, c1, c2, c3), key)
    for a in range(2):
        for b in range(3):
            for c in range(5):
                counter = (int(c0[c]), int(c1[b, 0]), int(c2[a, 0, 0]), int(c3))
                assert tuple(int(word.expand(2, 3, 5)[a, b, c]) for word in found) == philox_python(counter, key)


def random_rng() -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (2,))


def test_mask_follows_the_contract() -> None:
    rng, p, H = random_rng(), 0.37, 3
    seed, offset = int(rng[0]) % 2**64, int(rng[1]) % 2**32
    tile = keep_tile(rng, (4, 7), (6, 15), torch.arange(2 * H).view(2, H), p)
    assert tile.shape == (2, H, 3, 9)
    for b in range(2):
        for h in range(H):
            for i in range(4, 7):
                for j in range(6, 15):
                    block = philox_python((j // 4, i, b * H + h, offset), (seed % 2**32, seed // 2**32))
                    kept = block[j % 4] >= math.floor(p * 2**32)
                    assert bool(tile[b, h, i - 4, j - 6]) == kept


def test_no_tiling_changes_the_mask() -> None:
    rng, heads = random_rng(), torch.arange(6)
    whole = keep_tile(rng, (0, 50), (0, 70), heads, 0.3)
    for _ in range(20):
        i0, j0 = random.randrange(50), random.randrange(70)
        i1, j1 = random.randint(i0, 50), random.randint(j0, 70)
        first = random.randrange(6)
        tile = keep_tile(rng, (i0, i1), (j0, j1), heads[first:], 0.3)
        assert torch.equal(tile, whole[first:, i0:i1, j0:j1])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_share_of_kept_probabilities(p: float) -> None:
    """The kept count of n independent draws lies within six standard deviations of n (1 - p)."""
    keep = keep_tile(random_rng(), (0, 512), (0, 512), torch.arange(4), p)
    n = keep.numel()
    assert abs(int(keep.sum()) - n * (1 - p)) <= 6 * math.sqrt(n * p * (1 - p))


def test_rows_keys_heads_seeds_and_offsets_are_independent() -> None:
    """Two masks that differ in one coordinate agree on half of their places, within six standard deviations."""
    rng = random_rng()
    grid = keep_tile(rng, (0, 256), (0, 256), torch.arange(2), 0.5)
    other_seed = keep_tile(rng + torch.tensor([1, 0]), (0, 256), (0, 256), torch.arange(2), 0.5)
    other_high = keep_tile(rng ^ torch.tensor([1 << 40, 0]), (0, 256), (0, 256), torch.arange(2), 0.5)
    other_offset = keep_tile(rng ^ torch.tensor([0, 1]), (0, 256), (0, 256), torch.arange(2), 0.5)
    pairs = {
        "neighbouring rows": (grid[:, :-1], grid[:, 1:]),
        "neighbouring keys": (grid[..., :-1], grid[..., 1:]),
        "keys of neighbouring words": (grid[..., :-4], grid[..., 4:]),
        "heads": (grid[0], grid[1]),
        "rows against keys": (grid[0], grid[0].mT),
        "seeds": (grid, other_seed),
        "upper half of the seed": (grid, other_high),
        "offsets": (grid, other_offset),
    }
    for name, (one, two) in pairs.items():
        n = one.numel()
        assert abs(int((one == two).sum()) - n / 2) <= 6 * math.sqrt(n / 4) + 256, name


def test_threshold_is_the_contract_s() -> None:
    assert threshold(0.0) == 0
    assert threshold(0.5) == 2**31
    assert threshold(0.1) == 429496729
    assert threshold(1 - 2**-53) == 2**32 - 1


def test_no_keys_and_no_rows() -> None:
    assert keep_tile(random_rng(), (3, 3), (0, 5), torch.arange(2), 0.5).shape == (2, 0, 5)
    assert keep_tile(random_rng(), (0, 3), (5, 5), torch.arange(2), 0.5).shape == (2, 3, 0)
