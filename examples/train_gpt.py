"""Train a small GPT twice from the same seed, with faops and with PyTorch's own attention, and compare the losses.

Run it with `python examples/train_gpt.py` where PyTorch is installed; it takes less than a minute on a CPU. The model
reads characters of text.txt with grouped query heads, rotary positions and a sliding window: one module of faops.nn,
against which stands what it takes to write the same around F.scaled_dot_product_attention. At the end the trained
model writes a line, token by token out of a KV cache.

The exit status is 1 if the losses of any step differ by more than 0.0001.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faops.nn import KVCache, MultiheadAttention, RotaryEmbedding

TEXT = Path(__file__).resolve().parent / "text.txt"
WIDTH, LAYERS, HEADS, HEADS_KV, WINDOW = 128, 4, 4, 2, 63
LENGTH, BATCH, LEARNING_RATE = 128, 8, 2e-3
TOLERANCE = 1e-4

Attention = Callable[[int], nn.Module]  # makes the attention of a layer


def faops_attention(layer: int) -> nn.Module:
    rotary = RotaryEmbedding(WIDTH // HEADS)
    return MultiheadAttention(
        WIDTH, HEADS, HEADS_KV, bias=False, causal=True, window=(WINDOW, 0), rotary=rotary, layer=layer
    )


class TorchAttention(nn.Module):
    """The same in PyTorch alone: rotation, window and groups are spelled out."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.Wqkv = nn.Linear(WIDTH, (HEADS + 2 * HEADS_KV) * self.head_dim, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.Wqkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([HEADS, HEADS_KV, HEADS_KV], dim=1)
        behind = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        visible = (behind >= 0) & (behind <= WINDOW)
        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=visible, enable_gqa=True)
        return self.out_proj(out.transpose(1, 2).flatten(-2))


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """x (batch, heads, tokens, dim), each half-pair turned by its position times its frequency."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] / base ** (torch.arange(half) / half)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, **cached: Any) -> Tensor:
        x = x + self.attention(self.norms[0](x), **cached)
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Tokens (batch, length) to the logits of what follows each of them."""

    def __init__(self, vocabulary: int, attention: Attention) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.blocks = nn.ModuleList([Block(attention(layer)) for layer in range(LAYERS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens: Tensor, **cached: Any) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, **cached)
        return self.head(self.norm(x))


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=120, help="steps of training (default: 120)")
    steps = options.parse_args(arguments).steps
    text = TEXT.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    tokens = torch.tensor([alphabet.index(character) for character in text])

    trained = {}
    for name, attention in (("faops", faops_attention), ("PyTorch", TorchAttention)):
        torch.manual_seed(0)
        model = GPT(len(alphabet), attention)
        started = time.perf_counter()
        trained[name] = model, train(model, tokens, steps)
        print(f"{name}: {steps} steps in {time.perf_counter() - started:.1f} s")
    (model, losses), (_, expected) = trained.values()

    print(f"\n{'step':>5}{'faops':>10}{'PyTorch':>10}{'difference':>13}")
    for step in sorted({*range(0, steps, max(1, steps // 6)), steps - 1}):
        print(f"{step:5}{losses[step]:10.5f}{expected[step]:10.5f}{abs(losses[step] - expected[step]):13.1e}")
    largest = max(abs(one - other) for one, other in zip(losses, expected))
    print(f"Largest difference of all steps: {largest:.1e}, allowed {TOLERANCE:.0e}")
    written = write(model, [alphabet.index(character) for character in "Alice "], 60)
    print(f"\nThe model writes: {''.join(alphabet[token] for token in written)!r}")
    return 0 if largest <= TOLERANCE else 1


def train(model: nn.Module, tokens: Tensor, steps: int) -> list[float]:
    """The loss of every step of AdamW on random pieces of ``tokens``; the same pieces at every call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH, 1), generator=generator)
        pieces = tokens[starts + torch.arange(LENGTH + 1)]
        loss = F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def write(model: GPT, tokens: list[int], count: int) -> list[int]:
    """``tokens`` and the ``count`` most likely ones that follow, one after the other out of a KV cache."""
    dtype = model.head.weight.dtype
    cache = KVCache(1, len(tokens) + count, HEADS_KV, WIDTH // HEADS, layers=LAYERS, dtype=dtype)
    written = list(tokens)
    for _ in range(count):
        new = torch.tensor([written[cache.lengths[0] :]])
        logits = model(new, step=cache.append(new.shape[1]))
        written.append(int(logits[0, -1].argmax()))
    return written


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
