"""KV-cache calls whose tensors lie on an NPU, for test_inference_device.py, which runs this in a process of its own.

The device is the simulated one of tests/semantics, its operators are the contract double's. Prints a JSON object: the
calls that failed, by their text, and how often a step of several layers waited for the device.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from typing import Any

import torch
from torch import Tensor

import faops
from faops import reference
from faops.backends.npu import operators
from faops.device import known
from tests import kvcache
from tests.npu import double
from tests.semantics import simulated_npu
from tests.semantics.npu_calls import INDICES, on_npu, to_npu

KERNEL = "npu.infer_decode"
REFUSED = ("softcap", "alibi", "alibi_batch", "value_dim")
FEATURES = [name for name in kvcache.FEATURES if name not in REFUSED]


def random_call() -> kvcache.Call:
    chosen: tuple[str, ...] = ()
    for name in random.sample(FEATURES, 4):
        if kvcache.compatible((*chosen, name)):
            chosen = (*chosen, name)
    page = random.choice((3, 16, 128)) if "paged" in chosen else 0
    shape = {"M": random.choice((1, 5)), "keys": random.choice((20, 130)), "page": page, "dim": 64, "dim_v": 64}
    return kvcache.make_call(*chosen, dtype=torch.float16, **shape)


def check(call: kvcache.Call) -> None:
    """Against the oracle; the index tensors lie on the device or on the CPU, at random."""
    options = {name: value for name, value in call.options.items() if name != "num_splits"}
    exact, exact_lse, _, v_after = reference.attention_with_kvcache(*call.tensors, **options)
    moved: list[Any] = to_npu(call.tensors)
    given = {
        name: value if name in INDICES and random.random() < 0.3 else to_npu(value)
        for name, value in call.options.items()
    }
    out, lse = faops.attention_with_kvcache(*moved, **given, return_lse=True, backend=KERNEL)
    assert out.device.type == lse.device.type == "npu"
    torch.testing.assert_close(out.cpu().double(), exact, atol=4e-3, rtol=4e-3)
    torch.testing.assert_close(lse.cpu().double(), exact_lse, atol=1e-3, rtol=1e-3)
    assert torch.equal(kvcache.bits(moved[2].cpu()), kvcache.bits(v_after))


def waits_of_a_step(layers: int) -> int:
    """How often calls that share their lengths wait for the device, without those waits that the double causes."""

    def cache() -> Tensor:
        return on_npu(torch.randn(20, 128, 2, 64).half())

    q, k, v = (on_npu(torch.randn(2, 1, heads, 64).half()) for heads in (4, 2, 2))
    lengths = on_npu(torch.tensor([100, 120], dtype=torch.int32))
    table = on_npu(torch.arange(8, dtype=torch.int32).view(2, 4))
    before = simulated_npu.reads
    for _ in range(layers):
        faops.attention_with_kvcache(
            q, cache(), cache(), k, v, cache_seqlens=lengths, block_table=table, causal=True, backend=KERNEL
        )
    return simulated_npu.reads - before


def main(seed: int, count: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    simulated_npu.install()
    profile = known("910b")
    faops.device._detect = lambda device: profile  # type: ignore[assignment]
    handle = double.install()
    operators.forget()
    failures = {}
    for _ in range(count):
        call = random_call()
        try:
            check(call)
        except Exception:
            failures[call.text] = traceback.format_exc()
    print(json.dumps({"failures": failures, "waits": waits_of_a_step(layers=4)}))
    handle.remove()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
