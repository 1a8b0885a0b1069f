"""What the child does: import torch_npu, read its operators, look at the devices, and compute a little on the first.

Each stage prints one line of JSON when it is done, so that what was found before a crash is known. The first stage that
raises ends the run. Run as ``python -m faops.doctor.npu.child``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from faops import reference
from faops.backends.npu import masks, operators
from faops.device import detect
from faops.doctor.npu.probe import MARK

LONGEST_MESSAGE = 500  # characters; torch_npu's come with a stack of C++ frames
BATCH, HEADS, LENGTH, HEAD_DIM = 1, 4, 64, 64
# Error allowed in units in the last place of the largest result: sums are in float32; weights and results are rounded.
ULPS = 4

# What faops asks of torch_npu: a use, operators of which one will do, and what they must take for it. Arguments are
# spelled in any of the ways that the backend knows.
NEEDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("attention", ("npu_fusion_attention", "npu_fusion_attention_v2", "npu_fusion_attention_v3"),
     ("head_num", "input_layout", "atten_mask", "scale", "sparse_mode", "actual_seq_qlen", "actual_seq_kvlen")),
    ("gradients", ("npu_fusion_attention_grad", "npu_fusion_attention_grad_v2", "npu_fusion_attention_grad_v3"),
     ("softmax_max", "softmax_sum", "attention_in", "scale")),
    ("decoding", ("npu_fused_infer_attention_score_v2", "npu_fused_infer_attention_score", "npu_incre_flash_attention"),
     ("head_num", "num_key_value_heads", "block_table", "actual_seq_kvlen")),
    ("lse of decoding", ("npu_fused_infer_attention_score_v2", "npu_fused_infer_attention_score"),
     ("return_softmax_lse",)),
    ("attention sinks", ("npu_fusion_attention", "npu_fusion_attention_v3", "npu_fused_infer_attention_score_v2"),
     ("sink",)),
    ("packed lse", ("npu_fusion_attention", "npu_fusion_attention_v3"), ("softmax_layout",)),
    ("writing a paged cache", ("npu_scatter_pa_kv_cache", "npu_scatter_nd_update_"), ()),
    ("rotary embedding", ("npu_rotary_mul",), ("rotary_mode",)),
    ("merging splits", ("npu_attention_update", "npu_ring_attention_update"), ()),
)  # fmt: skip


def main() -> None:
    for name, stage in stages().items():
        try:
            found = stage()
        except Exception as error:
            found = {"error": _message(error)}
        print(MARK + json.dumps({"stage": name, **found}), flush=True)
        if "error" in found:
            break


def stages() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "import": load,
        "operators": offered,
        "devices": devices,
        "bfloat16": lambda: bfloat16(torch.device("npu", 0)),
        "numerics": lambda: numerics(torch.device("npu", 0)),
    }


def _message(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


def load() -> dict[str, Any]:
    module = importlib.import_module("torch_npu")
    return {"version": str(getattr(module, "__version__", "of unknown version"))}


def offered() -> dict[str, Any]:
    """The uses that this torch_npu serves, and what it lacks for each of the others."""
    if not any(map(operators.registered, operators.recording()["operators"])):
        raise RuntimeError("torch_npu was imported, but it registered none of its operators")
    there = operators.operators()
    lacking = {use: _lacks(there, names, keywords) for use, names, keywords in NEEDS}
    return {
        "origin": there.origin,
        "served": [use for use, reason in lacking.items() if not reason],
        "lacking": {use: reason for use, reason in lacking.items() if reason},
    }


def _lacks(there: operators.Operators, names: tuple[str, ...], keywords: tuple[str, ...]) -> str:
    """What keeps every one of the operators ``names`` from being called with ``keywords``; "" if one can be."""
    if any(there.takes(name, *keywords) for name in names):
        return ""
    present = next((name for name in names if there.has(name)), None)
    if present is None:
        return f"no {' or '.join(names)}"
    return f"{present} takes no {', '.join(word for word in keywords if not there.takes(present, word))}"


def devices() -> dict[str, Any]:
    npu = getattr(torch, "npu")  # noqa: B009 (set by torch_npu, unknown to type checkers)
    count = int(npu.device_count()) if npu.is_available() else 0
    found = [detect(torch.device("npu", index)) for index in range(count)]
    return {
        "devices": [
            {"name": each.name, "soc": each.soc, "arch": each.arch, "cores": each.units, "bytes": each.memory_bytes}
            for each in found
        ]
    }


def bfloat16(device: torch.device) -> dict[str, Any]:
    """Whether the chip should have bfloat16, whether torch_npu says so, and whether a product in it is right."""
    profile, npu = detect(device), getattr(torch, "npu")  # noqa: B009
    supported = bool(npu.is_bf16_supported()) if hasattr(npu, "is_bf16_supported") else profile.limits.bfloat16
    return {
        "name": profile.name,
        "expected": profile.limits.bfloat16,
        "supported": supported,
        "right": _product_is_right(device) if supported else False,
    }


def _product_is_right(device: torch.device) -> bool:
    """Of whole numbers that bfloat16 holds exactly."""
    left, right = torch.arange(256.0).reshape(16, 16) % 5, torch.arange(256.0).reshape(16, 16) % 3
    product = left.to(device, torch.bfloat16) @ right.to(device, torch.bfloat16)
    return torch.equal(product.float().cpu(), left @ right)


def numerics(device: torch.device) -> dict[str, Any]:
    """Small attentions by the operators themselves, against the float64 oracle on the CPU."""
    profile, there = detect(device), operators.operators()
    trials = TRIALS_OF_310P if profile.arch == "310P" else TRIALS
    dtypes = [torch.float16] + ([torch.bfloat16] if profile.limits.bfloat16 else [])
    names = [name for name in trials if there.has(name.partition(",")[0])]
    return {"tried": [_tried(name, trials[name], dtype, device) for dtype in dtypes for name in names]}


def _tried(name: str, compute: Trial, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM, generator=generator).to(dtype) for _ in range(3))
    exact, _ = reference.attention(q, k, v, causal=name.endswith("causal"), layout="bhsd")
    got = compute(*(tensor.to(device) for tensor in (q, k, v))).cpu()
    error = float((got.double() - exact).abs().max())
    allowed = ULPS * torch.finfo(dtype).eps * float(exact.abs().max())
    return {"name": name, "dtype": str(dtype).removeprefix("torch."), "error": error, "allowed": allowed}


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By the compressed mask, in which True hides: were it taken the other way round, the result would be wrong."""
    return _fusion(q, k, v, atten_mask=masks.compressed(q.device), sparse_mode=masks.CAUSAL)


def _fusion(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    layout = {"head_num": HEADS, "input_layout": "BNSD", "scale": HEAD_DIM**-0.5}
    out: Tensor = operators.call("npu_fusion_attention", q, k, v, **layout, **options)[0]
    return out


def _inference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _infer("npu_fused_infer_attention_score", q, k, v)[0]
    return out


def _prompt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _infer("npu_prompt_flash_attention", q, k, v)
    return out


def _infer(name: str, q: Tensor, k: Tensor, v: Tensor) -> Any:
    heads = {"head_num": HEADS, "num_key_value_heads": HEADS}
    return operators.call(name, q, k, v, **heads, input_layout="BNSD", scale=HEAD_DIM**-0.5)


Trial = Callable[[Tensor, Tensor, Tensor], Tensor]
TRIALS: dict[str, Trial] = {
    "npu_fusion_attention": _fusion,
    "npu_fusion_attention, causal": _causal,
    "npu_fused_infer_attention_score": _inference,
}
TRIALS_OF_310P: dict[str, Trial] = {"npu_prompt_flash_attention": _prompt}  # the others are not for it


if __name__ == "__main__":
    main()
