"""The dropout mask: Philox4x32-10 in torch integer operations, on any torch device.

Philox is the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011). The mask is a pure function of the seed and of each probability's place, so backward makes it again and no
tile size changes it. Every faops kernel follows the same contract:

For query row i, key j, query head h of H and batch entry b, with p the dropout probability,

- the counter words are ``(j // 4, i, b * H + h, offset mod 2**32)``;
- the key words are ``(seed mod 2**32, seed // 2**32 mod 2**32)``;
- the probability is kept iff output word ``j % 4``, an unsigned 32-bit integer, is at least ``floor(p * 2**32)``;
- a kept probability is multiplied by ``1 / (1 - p)``, the others become 0.

``i`` and ``j`` are positions inside their own sequence, so a packed batch (varlen) and a padded one get the same mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
ROUNDS = 10
# Round multipliers and key increments of philox4x32, from the paper.
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
WORDS = 4  # random words a counter gives, hence keys that share one

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor | int, Tensor | int]) -> Words:
    """Four random words for each counter and one key.

    ``counter`` holds four int64 tensors of broadcastable shapes and ``key`` two 0-d int64 tensors or ints, all in
    [0, 2**32). Returns four int64 tensors in [0, 2**32) of the broadcast shape.
    """
    # The words stay unbroadcast as long as they can: over a (heads, rows, keys) grid of counters the first two rounds
    # cost next to nothing. c1 and c3 carry garbage above bit 31, which the next xor and mask take away.
    c0, c1, c2, c3 = counter
    rounds = torch.arange(ROUNDS, device=c0.device)
    keys0 = ((rounds * WEYL_0 + key[0]) & MASK32).unbind()
    keys1 = ((rounds * WEYL_1 + key[1]) & MASK32).unbind()
    for k0, k1 in zip(keys0, keys1):
        product0 = c0 * MULTIPLIER_0  # the low 64 bits of the product, in two's complement
        product1 = c2 * MULTIPLIER_1
        c0 = ((product1 >> 32) ^ (c1 ^ k0)) & MASK32
        c2 = ((product0 >> 32) ^ (c3 ^ k1)) & MASK32
        c1, c3 = product1, product0
    return c0, c1 & MASK32, c2, c3 & MASK32


def threshold(p: float) -> int:
    """The smallest random word that keeps a probability: ``floor(p * 2**32)``."""
    return math.floor(p * 2.0**32)


def keep_tile(rng: Tensor, rows: tuple[int, int], keys: tuple[int, int], batch_heads: Tensor, p: float) -> Tensor:
    """Which probabilities of a tile survive dropout.

    ``rng`` is int64 (2,): seed and offset. ``rows`` and ``keys`` are half-open ranges of positions inside the
    sequence, ``batch_heads`` an int64 tensor of ``b * H + h`` of any shape S, on the device of ``rng``. Returns a
    bool tensor of shape S + (rows, keys), True where kept. Never waits for the device.
    """
    first_group, last_group = keys[0] // WORDS, -(-keys[1] // WORDS)
    groups = torch.arange(first_group, last_group, device=rng.device)
    positions = torch.arange(rows[0], rows[1], device=rng.device)[:, None]
    seed, offset = rng[0], rng[1]
    words = philox4x32(
        (groups, positions, batch_heads[..., None, None], offset & MASK32),
        (seed & MASK32, (seed >> 32) & MASK32),
    )
    least = threshold(p)
    keep = torch.stack([word >= least for word in words], dim=-1).flatten(-2)
    skipped = keys[0] - first_group * WORDS
    return keep[..., skipped : skipped + keys[1] - keys[0]]
