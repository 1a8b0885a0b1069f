"""Names of operators and kernels, and what each is to attention.

Operators of PyTorch are named as they are registered (``namespace::name``), kernels of GPUs by their function, and
kernels of Ascend NPUs by their type. Sources: PyTorch's native_functions.yaml, the sources of FlashAttention 2, 3 and
4, xFormers, vLLM and FlashInfer, and the documents of torch_npu's operators.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from faops.profile.events import Kind


class Family(NamedTuple):
    """Names that match a pattern, and what they are."""

    pattern: str
    kind: Kind
    label: str = ""
    by_hand: bool = False

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


# Operators that are attention as a whole: what they call is their own affair.
FUSED_OPERATORS = (
    Family(r"^aten::_scaled_dot_product_flash_attention_for_cpu", Kind.FUSED, "PyTorch SDPA, flash on the CPU"),
    Family(r"^aten::(_scaled_dot_product)?_flash_attention", Kind.FUSED, "PyTorch SDPA, flash"),
    Family(r"^aten::(_scaled_dot_product)?_efficient_attention", Kind.FUSED, "PyTorch SDPA, memory-efficient"),
    Family(r"^aten::(_scaled_dot_product)?_cudnn_attention", Kind.FUSED, "PyTorch SDPA, cuDNN"),
    Family(r"^aten::_scaled_dot_product_fused_attention", Kind.FUSED, "PyTorch SDPA, the device's own"),
    Family(r"^flash_attn::_flash_attn_", Kind.FUSED, "FlashAttention 2"),
    Family(r"^flash_attn_3::(_flash_attn_|fwd$|bwd$)", Kind.FUSED, "FlashAttention 3"),
    Family(r"^xformers_flash3?::flash_", Kind.FUSED, "xFormers, flash"),
    Family(r"^xformers::efficient_attention_", Kind.FUSED, "xFormers"),
    Family(r"^_vllm_fa[23]_C::|^_C::paged_attention_v[12]$", Kind.FUSED, "vLLM"),
    Family(r"^npu::npu_fusion_attention", Kind.FUSED, "torch_npu, npu_fusion_attention"),
    Family(r"^npu::npu_fused_infer_attention_score", Kind.FUSED, "torch_npu, npu_fused_infer_attention_score"),
    Family(r"^npu::npu_prompt_flash_attention", Kind.FUSED, "torch_npu, npu_prompt_flash_attention"),
    Family(r"^npu::npu_incre_flash_attention", Kind.FUSED, "torch_npu, npu_incre_flash_attention"),
)

# Parts of which attention is made, and what goes with it.
PARTS = (
    Family(r"^aten::(bmm|baddbmm|mm|addmm)(_|\.|$)", Kind.PRODUCT),
    Family(r"^aten::(_softmax|_masked_softmax|_sparse_softmax)$", Kind.SOFTMAX),
    Family(r"^triton_.*(?<!log_)softmax", Kind.SOFTMAX),  # by torch.compile
    Family(r"^aten::(exp|exp2)_?$", Kind.SOFTMAX, by_hand=True),
    Family(r"^aten::sum$", Kind.OTHER),  # tells the exponentials of a softmax from those of an activation
    Family(r"^aten::(_softmax_backward_data|_masked_softmax_backward)$", Kind.SOFTMAX_GRADIENT),
    Family(r"^npu::npu_scaled_masked_softmax(_backward)?$", Kind.SOFTMAX),
    Family(r"^aten::copy_$", Kind.COPY),
    Family(r"^aten::(triu|tril|masked_fill|where|lt|le|gt|ge|eq|ne)_?$", Kind.MASK),
    Family(r"^aten::(logical|bitwise)_(and|or|not|xor)_?$|^aten::__(and|or)__$", Kind.MASK),
    Family(r"^aten::(ones|zeros|full|new_ones|new_zeros|new_full)$", Kind.MASK),
)

# Kernels of a GPU that no operator called: launched by CUDA or Triton code itself, or replayed from a graph.
GPU_KERNELS = (
    Family(r"^attention_(forward|dkv|dq|decode)\b", Kind.FUSED, "faops"),
    Family(r"FlashAttn(Fwd|Bwd)Sm", Kind.FUSED, "FlashAttention 3"),
    Family(r"FlashAttention(MLA)?(Forward|Backward)Sm", Kind.FUSED, "FlashAttention 4"),
    Family(r"flash_(fwd|bwd)_(kernel|splitkv_kernel|dq_dk_dv)", Kind.FUSED, "FlashAttention 2"),
    Family(r"fmha_cutlass[FB]", Kind.FUSED, "memory-efficient attention (CUTLASS)"),
    Family(r"cudnn.*(sdpa|flash_[fb]prop)", Kind.FUSED, "cuDNN"),
    Family(r"(Batch|Single)(Prefill|Decode)With\w*K[Vv]Cache", Kind.FUSED, "FlashInfer"),
    Family(r"paged_attention_v[12]_kernel|unified_attention_[23]d", Kind.FUSED, "vLLM"),
    Family(r"flex_attention|flex_decoding", Kind.FUSED, "PyTorch FlexAttention, compiled"),
    Family(r"^_?attn_(fwd|bwd)", Kind.FUSED, "a Triton kernel"),
    Family(r"(?i)(?<!log_)(?<!log)softmax", Kind.SOFTMAX),
    Family(r"(?i)gemm|^nvjet", Kind.PRODUCT),
)

# Types of Ascend's kernels, as in the column Type of kernel_details.csv.
NPU_KERNELS = (
    Family(r"^FlashAttentionScore", Kind.FUSED, "npu_fusion_attention"),
    Family(r"^FusedInferAttentionScore", Kind.FUSED, "npu_fused_infer_attention_score"),
    Family(r"^PromptFlashAttention", Kind.FUSED, "npu_prompt_flash_attention"),
    Family(r"^IncreFlashAttention", Kind.FUSED, "npu_incre_flash_attention"),
    Family(r"PagedAttention|UnpadFlashAttention", Kind.FUSED, "Ascend Transformer Boost"),
    Family(r"^attention_(forward|dkv|dq|decode)\b", Kind.FUSED, "faops"),
    Family(r"^(Batch)?MatMul(V[23])?$", Kind.PRODUCT),
    Family(r"^(Softmax(V2)?|ScaledMaskedSoftmax(V2)?)$", Kind.SOFTMAX),
    Family(r"^(SoftmaxGrad|ScaledMaskedSoftmaxGrad(V2)?)$", Kind.SOFTMAX_GRADIENT),
    Family(r"^(Transpose|TransposeD|ViewCopy|TensorMove|AsStrided)$", Kind.COPY),
    Family(r"^(Triu|Tril|MaskedFill|Select(V2)?|Less|LessEqual|Greater|GreaterEqual|Equal|NotEqual)$", Kind.MASK),
    Family(r"^(LogicalAnd|LogicalOr|LogicalNot|OnesLike|Fill|BroadcastTo)$", Kind.MASK),
)

# Kernels of faops whose launch is attention block by block. It holds a few blocks of scores, never all of them.
TILED = ("torch.blockwise_",)
# Kernels of faops that are attention as a whole; those of other backends are judged by what they call.
OWN = ("cuda_raw.", "triton.")

# Operators whose products are with weights.
PROJECTIONS = ("aten::linear",)
# How the ranges end in which torch.compile traces, compiles and tries kernels: nothing of a program runs there.
COMPILING = "(dynamo_timed)"
# Operators that only look at memory in another way, or fetch some.
VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "_conj", "_nested_view_from_buffer", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach",
        "detach_", "empty", "empty_like", "empty_strided", "expand", "expand_as", "flatten", "item", "lift_fresh",
        "_local_scalar_dense", "mT", "narrow", "new_empty", "new_empty_strided", "permute", "reshape", "resize_",
        "resolve_conj", "resolve_neg", "result_type", "scalar_tensor", "select", "slice", "split", "split_with_sizes",
        "squeeze", "squeeze_", "set_", "t", "to", "transpose", "transpose_", "unbind", "unflatten", "unsafe_split",
        "unsqueeze", "unsqueeze_", "view", "view_as",
    )
)  # fmt: skip


@functools.cache
def operator(name: str) -> Family | None:
    """What an operator is; None for one of which nothing is said."""
    return _first((*FUSED_OPERATORS, *PARTS), name)


@functools.cache
def gpu_kernel(name: str) -> Family | None:
    """What a kernel of a GPU is, by the name of its function."""
    return _first(GPU_KERNELS, name.removeprefix("void "))


@functools.cache
def npu_kernel(type_: str) -> Family | None:
    """What a kernel of an NPU is, by its type."""
    return _first(NPU_KERNELS, type_)


def _first(families: tuple[Family, ...], name: str) -> Family | None:
    return next((family for family in families if family.matches(name)), None)


def is_backward(name: str) -> bool:
    """Whether an operator or kernel of attention computes gradients."""
    return re.search(r"(?i)backward|_bwd|bprop|Grad|CutlassB|attention_d(q|kv)\b|Bwd", name) is not None
