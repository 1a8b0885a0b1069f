"""The KV-cache call of flash-attn 3, which says more than ``faops.attention_with_kvcache`` does.

That one has a single length of queries and of new keys for all sequences, rotates from the cache's lengths on, and
scores by q · k alone. For the rest, passes in torch operations come before it, none of which waits for the device:

- rotary from positions of its own (``rotary_seqlens``), or of packed tokens: q and the new keys are rotated first;
- packed new keys (``cu_seqlens_k_new``), and new keys beside ``qv``: written into the cache here;
- packed queries (``cu_seqlens_q``): spread to (B, max_seqlen_q, H, D), aligned at the right, and packed again;
- ``qv``: keys and values of the sequences are copied side by side, which takes memory like a dense cache of theirs;
- ``attention_chunk``: a bool mask (B, 1, M, capacity).

An error leaves the cache as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import faops
from faops.adapters.flash_attn import chunk
from faops.adapters.flash_attn.conventions import FlashAttnArgumentError, may_read
from faops.adapters.flash_attn.hopper_arguments import check_qv, with_qv
from faops.adapters.flash_attn.ragged import Places, RightAligned, check_offsets
from faops.rotary import apply_rotary
from faops.validate import check_index, check_same, check_tensor, describe
from faops.validate_cache import check_caches_are_writable


@dataclass(frozen=True)
class Cache:
    """Keys and values of earlier calls, and where each sequence has its own."""

    k: Tensor  # (rows, capacity, Hk, D), or (pages, page size, Hk, D)
    v: Tensor
    lengths: Tensor | None  # int32 (B,); None: every sequence fills the cache
    leftpad: Tensor | None  # int32 (B,)
    rows: Tensor | None  # int32 (B,), the row of each sequence: of the cache, or of its pages
    pages: Tensor | None  # int32 (B or more, pages a sequence)

    @property
    def capacity(self) -> int:
        return self.k.shape[1] if self.pages is None else self.k.shape[1] * self.pages.shape[1]

    def ends(self, batch: int) -> Tensor:
        """int64 (B,): where each sequence's keys end before the call."""
        if self.lengths is None:
            return torch.full((batch,), self.capacity, device=self.k.device)
        return self.lengths.long()

    def with_own_pages(self) -> Cache:
        """``rows`` as part of ``pages``: faops takes one of the two."""
        if self.pages is None or self.rows is None:
            return self
        check_index("cache_batch_idx", self.rows, self.k, (None,), "(batch,)")
        _check_range("cache_batch_idx", self.rows, self.pages.shape[0], "rows of page_table")
        return replace(self, pages=self.pages[self.rows.long()], rows=None)

    def slots(self, sequence: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Where positions of sequences lie: int64 indices of the caches' first two axes."""
        if self.pages is not None:
            size = self.k.shape[1]
            return self.pages[sequence, position // size].long(), position % size
        return (sequence if self.rows is None else self.rows.long()[sequence]), position

    def gathered(self, batch: int) -> Cache:
        """A copy with the sequences in order, (B, capacity, Hk, D); behind a length may stand anything."""
        if self.pages is not None:
            # Entries behind a sequence's last page need not name one.
            pages = self.pages.long().clamp(0, self.k.shape[0] - 1)
            return replace(self, k=self.k[pages].flatten(1, 2), v=self.v[pages].flatten(1, 2), pages=None)
        if self.rows is not None:
            return replace(self, k=self.k[self.rows.long()], v=self.v[self.rows.long()], rows=None)
        return replace(self, k=self.k[:batch], v=self.v[:batch])


@dataclass(frozen=True)
class Rotary:
    cos: Tensor  # (positions, rotary_dim / 2)
    sin: Tensor
    interleaved: bool
    starts: Tensor | None  # int32 (B,), where the new tokens begin; None: where the cache ends


@dataclass(frozen=True)
class Call:
    """One call. Its new keys and values are (B, new, Hk, D), or packed where ``offsets_new`` says so; so is q."""

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    qv: Tensor | None
    cache: Cache
    rotary: Rotary | None
    offsets_q: Tensor | None  # int32 (B + 1,)
    offsets_new: Tensor | None
    longest_q: int  # of a sequence's query rows
    attention_chunk: int
    options: dict[str, Any]  # of faops.attention_with_kvcache

    @property
    def batch(self) -> int:
        return self.q.shape[0] if self.offsets_q is None else self.offsets_q.shape[0] - 1

    @property
    def places_q(self) -> Places:
        if self.offsets_q is None:
            return Places.dense(self.batch, self.q.shape[1], self.q.device)
        return Places.read(self.offsets_q, self.q.shape[0])

    def places_new(self, k: Tensor) -> Places:
        if self.offsets_new is None:
            return Places.dense(self.batch, k.shape[1], k.device)
        return Places.read(self.offsets_new, k.shape[0])

    @property
    def writes_itself(self) -> bool:
        return self.k is not None and (self.offsets_new is not None or self.qv is not None)

    @property
    def rotates_itself(self) -> bool:
        if self.rotary is None:
            return False
        return self.rotary.starts is not None or self.offsets_q is not None or self.writes_itself


def attend(call: Call) -> tuple[Tensor, Tensor]:
    """(out, lse) after the new keys and values are in the cache; out like q, lse (B, H, M) or (H, total_q)."""
    call = replace(call, cache=call.cache.with_own_pages())
    _check_packed(call)
    if call.rotates_itself:
        call = _rotated(call)
    if not call.writes_itself:
        return _attend_rows(call)
    slots, new, call = _placed(call)
    k_cache, v_cache = call.cache.k, call.cache.v
    before = k_cache[slots], v_cache[slots]
    try:
        k_cache[slots], v_cache[slots] = new
        return _attend_rows(call)
    except BaseException:
        k_cache[slots], v_cache[slots] = before
        raise


def _attend_rows(call: Call) -> tuple[Tensor, Tensor]:
    """With queries packed or not: packed ones take a detour."""
    if call.offsets_q is None:
        return _attend_dense(call)
    aligned = RightAligned(call.places_q, call.longest_q)
    qv = None if call.qv is None else aligned.spread(call.qv)
    out, lse = _attend_dense(replace(call, q=aligned.spread(call.q), qv=qv, offsets_q=None))
    return aligned.gather(out, 0.0), aligned.gather(lse.transpose(1, 2), -torch.inf).T.contiguous()


def _attend_dense(call: Call) -> tuple[Tensor, Tensor]:
    q, cache, mask, rotary = call.q, call.cache, None, call.rotary
    if chunk.hides(call.attention_chunk, cache.capacity, call.options["causal"]):
        mask = _chunk_mask(call)
    if call.qv is not None:
        cache = cache.gathered(call.batch)
        q, keys = with_qv(q, cache.k, cache.v, call.qv)
        cache = replace(cache, k=keys)
    return faops.attention_with_kvcache(  # type: ignore[no-any-return]
        q, cache.k, cache.v, call.k, call.v,
        cache_seqlens=cache.lengths, cache_batch_idx=cache.rows, cache_leftpad=cache.leftpad, block_table=cache.pages,
        rotary_cos=None if rotary is None else rotary.cos, rotary_sin=None if rotary is None else rotary.sin,
        rotary_interleaved=rotary is None or rotary.interleaved, mask=mask, return_lse=True, **call.options,
    )  # fmt: skip


def _chunk_mask(call: Call) -> Tensor:
    """Row i of sequence b stands M - i before the end of its keys, the new ones among them."""
    cache, rows = call.cache, call.q.shape[1]
    ends = cache.ends(call.batch) + (0 if call.k is None else call.k.shape[1])
    return chunk.visible(call.attention_chunk, ends - rows, rows, cache.capacity, cache.leftpad)


# --- rotary -----------------------------------------------------------------------------------------------------------


def _rotated(call: Call) -> Call:
    """The call with q and the new keys rotated; the rest of it then needs no rotary."""
    rotary = call.rotary
    assert rotary is not None
    starts = call.cache.ends(call.batch) if rotary.starts is None else rotary.starts
    if rotary.starts is not None:
        check_index("rotary_seqlens", rotary.starts, call.q, (call.batch,), "(batch,)")
    banded = call.options["causal"] or max(call.options["window"]) >= 0
    q = _turn(rotary, call.q, call.places_q, starts, banded)
    k = None if call.k is None else _turn(rotary, call.k, call.places_new(call.k), starts, True)
    return replace(call, q=q, k=k, rotary=None)


def _turn(rotary: Rotary, tokens: Tensor, places: Places, starts: Tensor, advance: bool) -> Tensor:
    """Tokens (..., H, D) rotated at the starts of their sequences, or at their own positions from there on."""
    _check_rotary(rotary, tokens)
    position = starts.long()[places.sequence] + (places.row if advance else 0)
    position = torch.where(places.valid, position, 0)
    _check_range("rotary_cos", position, rotary.cos.shape[0], "positions that it has")
    flat = tokens.reshape(1, -1, *tokens.shape[-2:])
    turned = apply_rotary(flat, rotary.cos, rotary.sin, position[None], rotary.interleaved)
    return turned.view(tokens.shape)


def _check_rotary(rotary: Rotary, tokens: Tensor) -> None:
    for name, table in (("rotary_cos", rotary.cos), ("rotary_sin", rotary.sin)):
        check_tensor(name, table, 2, "(positions, rotary_dim / 2)")
        if 2 * table.shape[1] > tokens.shape[-1] or table.shape != rotary.cos.shape:
            expected = f"both of shape (positions, at most {tokens.shape[-1] // 2})"
            raise FlashAttnArgumentError(name, describe(table), expected)


# --- new keys and values ----------------------------------------------------------------------------------------------


def _placed(call: Call) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Call]:
    """The slots that the new keys and values belong in, these one token a slot, and the call once they are there."""
    cache, k, v = call.cache, call.k, call.v
    assert k is not None and v is not None and cache.lengths is not None
    places = call.places_new(k)
    check_caches_are_writable(cache.k, cache.v, {"q": call.q, "k": k, "v": v, "qv": call.qv})
    _check_room(cache, places.lengths)
    position = cache.lengths.long()[places.sequence] + places.row
    k, v = (new.reshape(-1, *new.shape[-2:]) for new in (k, v))
    # Tokens behind the last sequence write again what the last one within it does. Without any, what is there already.
    token = torch.arange(k.shape[0], device=k.device)
    token = torch.where(places.valid, token, (places.lengths.sum() - 1).clamp(min=0))
    position = torch.where(places.valid[token], position[token], 0)
    slots = cache.slots(places.sequence[token], position)
    _check_slots(cache, slots, places)
    real = places.valid[token, None, None]
    new = torch.where(real, k[token], cache.k[slots]), torch.where(real, v[token], cache.v[slots])
    grown = replace(cache, lengths=(cache.lengths + places.lengths).to(torch.int32))
    return slots, new, replace(call, k=None, v=None, cache=grown)


def _check_room(cache: Cache, added: Tensor) -> None:
    assert cache.lengths is not None
    if not may_read(added):
        return
    for length, new in zip(cache.lengths.tolist(), added.tolist()):
        if not 0 <= length <= cache.capacity - new:
            expected = f"between 0 and {cache.capacity - new}: room for {new} new of {cache.capacity} keys"
            raise FlashAttnArgumentError("cache_seqlens", length, expected)


def _check_slots(cache: Cache, slots: tuple[Tensor, Tensor], places: Places) -> None:
    """The slots that are written exist, and each is written once."""
    name = "cache_batch_idx" if cache.pages is None else "page_table"
    _check_range(name, slots[0], cache.k.shape[0], f"{'rows' if cache.pages is None else 'pages'} of k_cache")
    if not may_read(slots[0]):
        return
    written = (slots[0] * cache.k.shape[1] + slots[1])[places.valid].tolist()
    if len(set(written)) < len(written):
        raise FlashAttnArgumentError(name, "a slot for two new keys", "a slot of its own for each new key")


def _check_range(name: str, index: Tensor, count: int, meaning: str) -> None:
    if not may_read(index) or index.numel() == 0:
        return
    for value in (int(index.min()), int(index.max())):
        if not 0 <= value < count:
            raise FlashAttnArgumentError(name, value, f"between 0 and {count - 1}, the {meaning}")


def _check_packed(call: Call) -> None:
    """What faops does not see of a call that this module changes."""
    q, cache = call.q, call.cache
    if call.qv is not None:
        check_qv(q, cache.v, call.qv)
    if call.offsets_q is not None:
        check_tensor("q", q, 3, "(total_q, heads, head_dim)")
        check_offsets("cu_seqlens_q", call.offsets_q, q, call.longest_q)
    if (call.k is None) != (call.v is None):
        raise FlashAttnArgumentError("k" if call.k is None else "v", "None", "new keys and new values together")
    if cache.lengths is not None:
        check_index("cache_seqlens", cache.lengths, q, (call.batch,), "(batch,)")
    if call.k is None or call.v is None or not (call.writes_itself or call.rotates_itself):
        return
    if cache.lengths is None:
        raise FlashAttnArgumentError("cache_seqlens", "None", "where to write the new keys: an int or an int32 tensor")
    _check_new(call.k, call.v, call)


def _check_new(k: Tensor, v: Tensor, call: Call) -> None:
    packed = call.offsets_new is not None
    lead = (k.shape[0],) if packed else (call.batch, k.shape[1])
    for name, new, cache in (("k", k, call.cache.k), ("v", v, call.cache.v)):
        check_tensor(name, new, 3 if packed else 4, "(total_new or (batch, new), heads_kv, head_dim)")
        check_same(name, new, call.q)
        check_same(f"{name}_cache", cache, call.q)
        if new.shape != (*lead, *cache.shape[2:]):
            raise FlashAttnArgumentError(name, describe(new), f"shape {(*lead, *cache.shape[2:])}, as the cache has it")
    if call.offsets_new is not None:
        check_offsets("cu_seqlens_k_new", call.offsets_new, k)
        if call.offsets_new.shape[0] != call.batch + 1:
            expected = f"{call.batch + 1} offsets, as the batch has {call.batch} sequences"
            raise FlashAttnArgumentError("cu_seqlens_k_new", describe(call.offsets_new), expected)
