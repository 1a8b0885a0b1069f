"""Footprints and problems to ask the model about."""

from __future__ import annotations

from typing import Any

from faops.autotune.model import Prediction, predict
from faops.autotune.model.predict import of_footprint
from faops.backends.cuda_raw.sm75_forward import Sm75Forward
from faops.backends.cuda_raw.sm80_forward import Sm80Forward
from faops.backends.triton.backward import TritonBackward
from faops.backends.triton.decode import TritonDecode
from faops.backends.triton.forward import TritonForward
from faops.device import DeviceProfile, known
from faops.footprint import Footprint
from faops.problem import AttentionProblem, Band
from faops.registry import Config, Kernel

NVIDIA = ("t4", "2080ti", "a100", "3090", "4090", "l4", "h100", "h200", "b200", "5090")
A100, H100 = known("a100"), known("h100")
KERNELS: dict[str, Kernel] = {
    kernel.id: kernel for kernel in (Sm75Forward(), Sm80Forward(), TritonForward(), TritonBackward(), TritonDecode())
}
CAUSAL = Band(-1, 0)


def problem(op: str = "forward", **changes: Any) -> AttentionProblem:
    """A causal problem of the size of a language model's layer."""
    plain: dict[str, Any] = {
        "op": op, "dtype": "float16", "batch": 2, "seqlen_q": 1 if op == "decode" else 4096, "seqlen_k": 4096,
        "heads_q": 16, "heads_kv": 16, "head_dim": 128, "head_dim_v": 128, "band": CAUSAL,
        "need_lse": op == "backward",
    }  # fmt: skip
    return AttentionProblem(**{**plain, **changes})


def serving(device: DeviceProfile, op: str) -> list[Kernel]:
    """The GPU kernels of ``op`` that run on ``device``."""
    turing = device.arch == "sm_75"
    return [kernel for kernel in KERNELS.values() if kernel.op == op and (kernel.name == "sm75_forward") == turing]


def seconds(kernel: Kernel, asked: AttentionProblem, device: DeviceProfile, config: Config) -> float:
    prediction = predict(kernel, asked, device, config)
    assert prediction is not None
    return prediction.seconds


def predicted(device: DeviceProfile = A100, **changes: Any) -> Prediction:
    """Of a grid that fills the device a hundred times over with products, changed as asked."""
    plain: dict[str, Any] = {
        "blocks": 216 * 100, "threads": 128, "registers": 200, "shared_bytes": 32768, "matrix_flops": 1e13,
        "traffic": 1e9, "vector_flops": 1e11, "exponentials": 1e10, "memory": 1e8, "steps": 32.0,
        "in_flight": 32768.0,
    }  # fmt: skip
    return of_footprint(Footprint(**{**plain, **changes}), device)
