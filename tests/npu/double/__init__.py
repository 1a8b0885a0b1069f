"""A stand-in for torch_npu's operators, without the hardware: the contract double.

``install`` defines the recorded schemas of one version of torch_npu under ``torch.ops.npu``, with kernels that compute
on the CPU what the operators' documents say, that refuse what the documents exclude, and that are wrong in silence
exactly where the real operators are. Where the documents leave a question open, the double refuses.

It is written from the documents alone and knows nothing of faops' kernels (only of their file of schemas). Results
hold to it as far as the documents do: contract-verified, not hardware-verified.
"""

from __future__ import annotations

from tests.npu.double.install import Handle, install
from tests.npu.double.schemas import OPERATORS, VERSIONS, recorded

__all__ = ["OPERATORS", "VERSIONS", "Handle", "install", "recorded"]
