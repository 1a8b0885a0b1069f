"""Step: one pass of a model over a cache. It knows where the new tokens go and what they see."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from faops import validate
from faops.errors import ArgumentError
from faops.nn.parts import Continued, Prompts
from faops.nn.rotary import RotaryEmbedding

Ints = npt.NDArray[np.integer[Any]]
# The calls of a step, each with the packed rows that it serves, and what brings their results into packed order; None
# where a single call serves all.
Plan = tuple[list[tuple[Tensor, Prompts | Continued]], Tensor | None]


class Step:
    """New tokens of some sequences of a cache, made by its ``append``. Each layer of a model calls :meth:`attend` once.

    Attributes:
        starts, counts: host arrays (sequences,): the length of each sequence before its new tokens, and their number.
        total: new tokens of all sequences.

    The other attributes are tensors on the device of the cache, made when they are first asked for. *Packed* means that
    the new tokens of the first sequence come first, then those of the second.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        table: Ints,
        starts: Ints,
        counts: Ints,
        paged: bool,
        stale: Callable[[], str],
    ) -> None:
        self._keys, self._values = keys, values  # (layers, pages, page size, Hk, D or Dv); a dense row is one long page
        self._table = table  # (sequences, width): the pages of each sequence in order
        self._paged = paged
        self._stale = stale  # what has made the step unusable, "" while nothing has
        self.starts, self.counts = starts, counts
        self.total = int(counts.sum())

    # --- where the new tokens are ------------------------------------------------------------------------------------

    @cached_property
    def cache_seqlens(self) -> Tensor:
        """The length of each sequence with its new tokens, int32 (sequences,)."""
        return self._tensor(self.starts + self.counts, np.int32)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """Where each sequence's new tokens begin and end in packed order, int32 (sequences + 1,)."""
        return self._tensor(_offsets(self.counts), np.int32)

    @cached_property
    def last_rows(self) -> Tensor:
        """Packed row of the last new token of each sequence, int64 (sequences,): the one to take logits of. It says
        nothing where a sequence has no new token.
        """
        return self._tensor(_offsets(self.counts)[1:] - 1)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each new token in its sequence, packed int64 (total,)."""
        return self._tensor(self._host_positions)

    @cached_property
    def slots(self) -> Tensor:
        """Slot of the cache of each new token, page × page size + place in the page, packed int64 (total,)."""
        return self._tensor(self._host_slots)

    @cached_property
    def block_table(self) -> Tensor:
        """The pages of each sequence, int32 (sequences, width); of a dense cache its row."""
        return self._tensor(self._table, np.int32)

    @cached_property
    def _host_positions(self) -> Ints:
        return np.arange(self.total) + np.repeat(self.starts - _offsets(self.counts)[:-1], self.counts)

    @cached_property
    def _host_slots(self) -> Ints:
        page_size = self._keys.shape[2]
        pages = self._table[self._owners, self._host_positions // page_size].astype(np.int64)
        return pages * page_size + self._host_positions % page_size

    @cached_property
    def _owners(self) -> Ints:
        """The sequence of each new token."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def _tensor(self, array: Ints, dtype: type = np.int64) -> Tensor:
        """On the device of the cache; the copy to an accelerator does not wait for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
        device = self._keys.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    # --- attention ---------------------------------------------------------------------------------------------------

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        rotary: RotaryEmbedding | None = None,
        window: tuple[int | None, int | None] = (-1, -1),
        scale: float | None = None,
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        sinks: Tensor | None = None,
        num_splits: int = 0,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Any:
        """Write the new keys and values of a layer, then let each new token attend to its sequence up to itself.

        Args:
            layer: which layer of the cache.
            q: packed (total, H, D); or (sequences, count, H, D) where every sequence has the same count.
            k, v: likewise, with Hk heads and D or Dv dims. None reads what the layer already holds, for a layer that
                shares the keys of another.
            rotary: rotates q and k at their positions; keys are cached rotated.
            window: (left, right) as in :func:`faops.attention`; right is 0 here, whatever is given.
            alibi_slopes: float32 (H,).

        The other arguments are those of :func:`faops.attention_with_kvcache`. Sequences that begin in this step go
        through :func:`faops.attention_varlen`, all at once; the others through ``attention_with_kvcache``, in one call
        for all of the same count. The first has a gradient, the second raises in backward.

        Returns:
            out, shaped as q with Dv dims; or (out, lse) with lse (H, total), or (sequences, H, count).

        Raises:
            ArgumentError: an argument is wrong, or one of the sequences has changed since the step was made. Nothing
                has been written then.
        """
        self._check(layer, q, k, v, alibi_slopes)
        options = {
            "window": window, "scale": scale, "softcap": softcap, "alibi_slopes": alibi_slopes, "sinks": sinks,
            "return_lse": return_lse, "backend": backend,
        }  # fmt: skip
        shape = q.shape[:-2]
        q = q.flatten(0, -3)
        k, v = (None if tensor is None else tensor.flatten(0, -3) for tensor in (k, v))
        if k is None and rotary is not None:
            q, rotary = rotary(q, self.positions, length=self._longest), None
        out, lse = self._attend_packed(layer, q, k, v, rotary, num_splits, options)
        out = out.view(*shape, *out.shape[1:])
        if not return_lse:
            return out
        return out, lse if len(shape) == 1 else lse.view(q.shape[1], *shape).transpose(0, 1)

    def _attend_packed(
        self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, *how: Any
    ) -> tuple[Tensor, Any]:
        """(out, lse or None) of packed tokens."""
        if self.total == 0:
            return q.new_empty(0, q.shape[1], self._values.shape[-1]), q.new_empty(q.shape[1], 0, dtype=torch.float32)
        cache = self._keys[layer], self._values[layer]
        parts, order = self._reading if k is None else self._writing
        if order is None:
            return parts[0][1].attend(*cache, q, k, v, *how)  # type: ignore[arg-type]
        outs: list[Tensor] = []
        lses: list[Any] = []
        for rows, part in parts:
            own = (None if tensor is None else tensor.index_select(0, rows) for tensor in (q, k, v))
            out, lse = part.attend(*cache, *own, *how)  # type: ignore[arg-type]
            outs.append(out)
            lses.append(lse)
        joined = None if lses[0] is None else torch.cat(lses, 1).index_select(1, order)
        return torch.cat(outs).index_select(0, order), joined

    @cached_property
    def _longest(self) -> int:
        return int((self.starts + self.counts).max(initial=0))

    @cached_property
    def _writing(self) -> Plan:
        return self._plan(self.starts == 0)

    @cached_property
    def _reading(self) -> Plan:
        return self._plan(np.zeros_like(self.starts, dtype=bool))

    def _plan(self, begins: npt.NDArray[np.bool_]) -> Plan:
        """The calls that serve all new tokens; ``begins`` says which sequences are prompts."""
        parts: list[tuple[Ints, Prompts | Continued]] = []
        if (begins & (self.counts > 0)).any():
            parts.append(self._prompts(np.flatnonzero(begins & (self.counts > 0))))
        for count in np.unique(self.counts[~begins & (self.counts > 0)]):
            parts.append(self._continued(np.flatnonzero(~begins & (self.counts == count))))
        if len(parts) == 1:  # and so in packed order already
            return [(self.positions, parts[0][1])], None
        order = np.argsort(np.concatenate([rows for rows, _ in parts])) if parts else self.counts
        return [(self._tensor(rows), part) for rows, part in parts], self._tensor(order)

    def _rows(self, members: Ints) -> Ints:
        """Packed rows of the tokens of these sequences."""
        return np.flatnonzero(np.isin(self._owners, members))

    def _prompts(self, members: Ints) -> tuple[Ints, Prompts]:
        rows, counts = self._rows(members), self.counts[members]
        positions, slots = self._tensor(self._host_positions[rows]), self._tensor(self._host_slots[rows])
        return rows, Prompts(positions, slots, self._tensor(_offsets(counts), np.int32), int(counts.max()))

    def _continued(self, members: Ints) -> tuple[Ints, Continued]:
        before = self.starts[members]
        after = before + self.counts[members]
        lengths = self._tensor(before, np.int32), self._tensor(after, np.int32)
        count, longest = int(self.counts[members[0]]), int(after.max())
        return self._rows(members), Continued(count, *lengths, longest, self._places(members))

    def _places(self, members: Ints) -> dict[str, Tensor]:
        """How a kernel finds the keys of these sequences in the cache."""
        if self._paged:
            return {"block_table": self._tensor(self._table[members], np.int32)}
        if len(members) == self._keys.shape[1]:
            return {}
        return {"cache_batch_idx": self._tensor(self._table[members, 0], np.int32)}

    # --- what a caller may get wrong ---------------------------------------------------------------------------------

    def _check(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, alibi_slopes: Tensor | None) -> None:
        if reason := self._stale():
            raise ArgumentError("step", f"one made before {reason}", "the step of the latest append")
        layers = self._keys.shape[0]
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
            raise ArgumentError("layer", repr(layer), f"a layer of a cache of {layers}, from 0")
        if (k is None) != (v is None):
            raise ArgumentError("k" if k is None else "v", "None", "new keys and new values together")
        self._check_tokens("q", q, (None, self._keys.shape[-1]))
        for name, new, cache in (("k", k, self._keys), ("v", v, self._values)):
            if new is not None:
                self._check_tokens(name, new, tuple(cache.shape[-2:]))
                if new.dim() != q.dim():
                    raise ArgumentError(name, validate.describe(new), f"{q.dim()} axes, as q")
        if alibi_slopes is not None and alibi_slopes.shape != (q.shape[-2],):
            raise ArgumentError("alibi_slopes", validate.describe(alibi_slopes), f"shape ({q.shape[-2]},)")

    def _check_tokens(self, name: str, tensor: Tensor, last: tuple[int | None, ...]) -> None:
        """A tensor of all new tokens, whose last axes are ``last``."""
        rank = tensor.dim() if isinstance(tensor, Tensor) and tensor.dim() == 3 else 4
        validate.check_tensor(name, tensor, rank, "(total, heads, dim) or (sequences, count, heads, dim)")
        validate.check_same(name, tensor, self._keys, "the cache")
        counts = self.counts.tolist()
        tokens: tuple[int, ...] = (self.total,)
        if rank == 4:
            if len(set(counts)) > 1:
                raise ArgumentError(name, validate.describe(tensor), f"packed tokens, for counts of {counts}")
            tokens = (len(counts), counts[0] if counts else 0)
        heads = tensor.shape[-2] if last[0] is None else last[0]
        if tuple(tensor.shape) != (*tokens, heads, last[1]):
            expected = f"{(*tokens, heads, last[1])} for the new tokens of this step"
            raise ArgumentError(name, f"shape {tuple(tensor.shape)}", expected)


def _offsets(counts: Ints) -> Ints:
    """Where each sequence begins when they lie one behind the other, and where the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
