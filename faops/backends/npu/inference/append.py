"""Writing new keys and values into the cache, in place: npu_scatter_pa_kv_cache where it takes the cache as it lies,
else npu_scatter_nd_update_.

The first writes keys and values in one launch and wants contiguous caches, their pages sequence first; its
``cache_mode`` has to be "Norm", the default being a format of its own ("PA_NZ"). A dense cache is one to it whose rows
are pages. The second takes caches of any strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faops.backends.npu import operators
from faops.backends.npu.inference.sequences import Sequence
from faops.device import DeviceProfile
from faops.inputs import DecodeInputs
from faops.problem import AttentionProblem
from faops.validate import may_read

SCATTER_PAGES = "npu_scatter_pa_kv_cache"
SCATTER = "npu_scatter_nd_update_"
WITHOUT_SCATTER_PAGES = ("310P",)  # torch_npu's documents: A2 and A3 only
CACHE_MODE = "Norm"


def missing(problem: AttentionProblem, device: DeviceProfile) -> str:
    """Why new keys cannot be written on ``device``; "" if they can, or there are none."""
    found = operators.operators()
    if not problem.append or found.has(SCATTER) or scatters_pages(device):
        return ""
    return f"{found.origin} has neither {SCATTER} nor {SCATTER_PAGES} with a cache_mode to write new keys with"


def scatters_pages(device: DeviceProfile) -> bool:
    """Whether npu_scatter_pa_kv_cache is there and can be told that the cache has the plain format."""
    return device.arch not in WITHOUT_SCATTER_PAGES and operators.operators().takes(SCATTER_PAGES, "cache_mode")


def append(inputs: DecodeInputs, k: Tensor, sequences: list[Sequence], device: DeviceProfile) -> None:
    """Write the new keys ``k``, rotated already, and values into the caches."""
    v = inputs.v
    if v is None or k.numel() + v.numel() == 0:
        return
    entries, slots = places(inputs, sequences, k.shape[1])
    new_k, new_v = k.flatten(0, 1), v.flatten(0, 1)
    k_cache, v_cache = inputs.k_cache, inputs.v_cache
    if inputs.block_table is not None and not may_read(inputs.q):
        # Nobody has looked whether the pages exist. A key for one that does not is not written: its place is held
        # inside of the cache, and gets what it holds already.
        exists = ((entries >= 0) & (entries < k_cache.shape[0]))[:, None, None]
        entries = entries.clamp(0, k_cache.shape[0] - 1)
        new_k = torch.where(exists, new_k, k_cache[entries, slots])
        new_v = torch.where(exists, new_v, v_cache[entries, slots])
    if k_cache.is_contiguous() and v_cache.is_contiguous() and scatters_pages(device):
        mapping = (entries * k_cache.shape[1] + slots).to(_slot_dtype(k_cache))
        operators.call(
            SCATTER_PAGES, new_k.contiguous(), new_v.contiguous(), k_cache, v_cache, mapping, cache_mode=CACHE_MODE
        )
        return
    indices = torch.stack([entries, slots], dim=1)
    operators.call(SCATTER, k_cache, indices, new_k.contiguous())
    operators.call(SCATTER, v_cache, indices, new_v.contiguous())


def places(inputs: DecodeInputs, sequences: list[Sequence], new: int) -> tuple[Tensor, Tensor]:
    """For each new key, (B · new,) int64: its row of a dense cache or its page, and its slot in that."""
    device = inputs.q.device
    positions = torch.tensor([[one.past + step for step in range(new)] for one in sequences], dtype=torch.int64)
    if inputs.block_table is None:
        rows = torch.tensor([one.row for one in sequences], dtype=torch.int64)
        return rows.repeat_interleave(new).to(device), positions.flatten().to(device)
    page_size = inputs.k_cache.shape[1]
    table = inputs.block_table
    pages = table.gather(1, (positions // page_size).to(table.device)).to(torch.int64)
    return pages.flatten().to(device), (positions % page_size).flatten().to(device)


def _slot_dtype(cache: Tensor) -> torch.dtype:
    slots = cache.shape[0] * cache.shape[1]
    return torch.int32 if slots <= torch.iinfo(torch.int32).max else torch.int64
