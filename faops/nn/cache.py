"""KVCache: keys and values of a batch of sequences, each with room of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faops.errors import ArgumentError
from faops.nn.counts import as_counts, check_size
from faops.nn.step import Step


class KVCache:
    """The KV cache of a batch, dense: ``capacity`` tokens for each of ``batch`` sequences, in all layers.

    Args:
        batch, capacity: sequences, and tokens that each can hold.
        heads_kv, head_dim, head_dim_v: of keys and values; head_dim_v is head_dim if None.
        layers: layers of the model.
        dtype, device: of keys and values, and so of q, k and v.

    ``k`` is (layers, batch, capacity, Hk, D) and ``v`` likewise with Dv: one layer of them is what
    :func:`faops.attention_with_kvcache` takes. A forward pass is one :meth:`append`, whose :class:`Step` every layer
    then attends through. What raises changes nothing.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        heads_kv: int,
        head_dim: int,
        head_dim_v: int | None = None,
        *,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        head_dim_v = head_dim if head_dim_v is None else head_dim_v
        sizes = {"batch": batch, "capacity": capacity, "heads_kv": heads_kv, "head_dim": head_dim,
                 "head_dim_v": head_dim_v, "layers": layers}  # fmt: skip
        for name, size in sizes.items():
            check_size(name, size)
        self.k = torch.zeros(layers, batch, capacity, heads_kv, head_dim, dtype=dtype, device=device)
        self.v = torch.zeros(layers, batch, capacity, heads_kv, head_dim_v, dtype=dtype, device=device)
        self._lengths = np.zeros(batch, dtype=np.int64)
        self._edits = 0

    def append(self, counts: int | Sequence[int]) -> Step:
        """Lengthen the sequences, each by its count or all by one, which may be 0.

        The keys and values of the new tokens are undefined until a layer has written them, :meth:`Step.attend`. Raises
        ArgumentError where a sequence would outgrow its capacity; no sequence has changed then.
        """
        new = as_counts("counts", counts, self.batch)
        starts = self._lengths
        for row in np.flatnonzero(starts + new > self.capacity):
            expected = f"at most {self.capacity - starts[row]} for sequence {row}, which holds {starts[row]} of "
            raise ArgumentError("counts", int(new[row]), f"{expected}{self.capacity} tokens")
        self._set(starts + new)
        rows = np.arange(self.batch, dtype=np.int32)[:, None]
        seen = self._edits
        return Step(
            self.k, self.v, rows, starts, new, False, lambda: "" if self._edits == seen else "the cache changed"
        )

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Forget the tokens of each sequence from ``lengths`` on, such as wrong guesses. Raises ArgumentError."""
        kept = as_counts("lengths", lengths, self.batch)
        for row in np.flatnonzero(kept > self._lengths):
            expected = f"at most {self._lengths[row]}, the length of sequence {row}"
            raise ArgumentError("lengths", int(kept[row]), expected)
        self._set(kept)

    def reorder(self, sources: Sequence[int]) -> None:
        """Sequence b becomes a copy of what sequence ``sources[b]`` was, as beam search does. Raises ArgumentError."""
        picked = as_counts("sources", sources, self.batch)
        for source in picked[picked >= self.batch]:
            raise ArgumentError("sources", int(source), f"a sequence of a batch of {self.batch}, from 0")
        filled = int(self._lengths[picked].max())
        index = torch.from_numpy(picked).to(self.k.device)
        with torch.no_grad():
            for tensor in (self.k, self.v):
                tensor[:, :, :filled] = tensor[:, :, :filled].index_select(1, index)
        self._set(self._lengths[picked])

    def reset(self) -> None:
        """Forget everything."""
        self._set(np.zeros_like(self._lengths))

    def _set(self, lengths: npt.NDArray[np.int64]) -> None:
        self._lengths = lengths
        self._edits += 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens appended to each sequence so far."""
        return tuple(self._lengths.tolist())

    @property
    def cache_seqlens(self) -> Tensor:
        """The same on the device of the cache, int32 (batch,)."""
        return torch.tensor(self._lengths, dtype=torch.int32, device=self.k.device)

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return self.k.nbytes + self.v.nbytes

    def __repr__(self) -> str:
        kind = f"{str(self.k.dtype).removeprefix('torch.')} on {self.k.device}"
        lengths = f"{min(self.lengths)} to {max(self.lengths)}"
        return f"<KVCache {lengths} of {self.capacity} tokens in {self.batch} sequences, {len(self.k)} layers, {kind}>"
