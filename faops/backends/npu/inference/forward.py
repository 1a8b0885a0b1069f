"""Forward on npu_fused_infer_attention_score: dense calls, and packed ones in the layout TND."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from faops import lengths
from faops.backends.npu import footprint, masks, operators
from faops.backends.npu.inference import fused, merge, scores, space
from faops.backends.npu.inference.kernel import HEAD_DIM_STEP, MOST_HEAD_DIM, InferenceKernel
from faops.backends.npu.inference.pages import MOST_KEYS_OF_ONE_ROW
from faops.backends.npu.inference.plain import Plain, Result, nothing_seen, padded_dim
from faops.device import DeviceProfile
from faops.footprint import Footprint
from faops.inputs import AttentionInputs
from faops.layout import conform, empty_lse, empty_out
from faops.problem import AttentionProblem
from faops.registry import Config

MOST_PACKED = 4096  # sequences of a packed batch


class InferForward(InferenceKernel):
    """softmax(q kᵀ) v by the inference operator; its (out, lse) suit any backward kernel."""

    name = "infer_forward"
    op = "forward"
    operator = fused.OPERATORS["v1"]
    architectures = ("910B", "910C", "950")
    priority = 26

    def own_reasons(self, problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
        if problem.layout == "varlen":
            yield from _packed_reasons(problem)
        else:
            yield from dense_reasons(problem)

    def configs(self, problem: AttentionProblem, device: DeviceProfile) -> list[Config]:
        return space.forward_space(problem)

    def footprint(self, problem: AttentionProblem, device: DeviceProfile, config: Config) -> Footprint:
        return footprint.forward(problem, device, config, HEAD_DIM_STEP)

    def launch(self, inputs: AttentionInputs, config: Config) -> Result:
        if inputs.q.numel() == 0 or inputs.k.shape[-3] == 0:
            return nothing_seen(inputs)
        out, lse = _packed(inputs, config) if inputs.cu_seqlens_q is not None else _dense(inputs, config)
        if inputs.sinks is not None:
            assert lse is not None
            out, lse = merge.join_sinks(out, lse, inputs.sinks)
        return conform(out, inputs.q), lse.contiguous() if inputs.need_lse and lse is not None else None


def dense_reasons(problem: AttentionProblem) -> Iterator[str]:
    """What the inference operators have against a dense problem."""
    dim = padded_dim(problem.head_dim, problem.head_dim_v)
    if dim > MOST_HEAD_DIM >= max(problem.head_dim, problem.head_dim_v):
        yield f"the head dim would be padded to {dim}, more than {MOST_HEAD_DIM}"
    if problem.seqlen_q == 1 and problem.seqlen_k > MOST_KEYS_OF_ONE_ROW:
        yield f"{problem.seqlen_k} keys of one row are more than {MOST_KEYS_OF_ONE_ROW}"
    if reason := scores.expansion(problem):
        yield reason


def _packed_reasons(problem: AttentionProblem) -> Iterator[str]:
    """What the layout TND has against a problem."""
    if problem.bias or problem.mask:
        yield f"packed sequences take no {'bias' if problem.bias else 'mask'}"
    if not space.packing_versions(problem):
        wanted = f"{space.PACKED_HEAD_DIM}, or in v2 {space.PACKED_HEAD_DIM_MHA} without grouped heads"
        yield f"packed sequences want a head dim of {wanted}, not {problem.head_dim}"
    if problem.head_dim_v != problem.head_dim:
        yield f"packed sequences want values of the keys' head dim, not {problem.head_dim_v} beside {problem.head_dim}"
    if problem.batch > MOST_PACKED:
        yield f"{problem.batch} packed sequences are more than {MOST_PACKED}"


def _dense(inputs: AttentionInputs, config: Config) -> Result:
    call = Plain(inputs, config)
    need_lse = inputs.need_lse or inputs.sinks is not None
    out, lse = fused.attend(call.q, call.keys, call.band, call.scores, inputs.scale, config, need_lse)
    scores.settle(out, lse, call.dead())
    return out[..., : inputs.v.shape[3]], lse


def _packed(inputs: AttentionInputs, config: Config) -> Result:
    """Packed sequences. Their lengths are read on the host, which waits for the device once a step."""
    assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
    ends_q, ends_k = lengths.host(inputs.cu_seqlens_q), lengths.host(inputs.cu_seqlens_k)
    rows, keys = ends_q[-1], ends_k[-1]
    if rows == 0 or keys == 0:
        return nothing_seen_packed(inputs)
    band = inputs.band.simplify(inputs.max_seqlen_q, inputs.max_seqlen_k)
    q, k, v = inputs.q[:rows].contiguous(), inputs.k[:keys].contiguous(), inputs.v[:keys].contiguous()
    need_lse = inputs.need_lse or inputs.sinks is not None
    found, found_lse = operators.call(
        fused.OPERATORS[str(config["operator"])], q, k, v, head_num=q.shape[1], num_key_value_heads=k.shape[1],
        scale=inputs.scale, input_layout="TND", inner_precise=config.integer("inner_precise"),
        return_softmax_lse=need_lse, actual_seq_qlen=ends_q[1:], actual_seq_kvlen=ends_k[1:],
        **fused.band_arguments(band, q.device, packed=True),
    )  # fmt: skip
    lse = found_lse.squeeze(-1).t() if need_lse else None  # (T, H, 1) → (H, T)
    dead = _dead(inputs, ends_q, ends_k)
    if rows < inputs.q.shape[0]:  # rows behind the last sequence
        out = empty_out(inputs.q, inputs.v.shape[2])
        out[:rows] = found
        if lse is not None:
            whole = empty_lse(inputs.q)
            whole[:, :rows] = lse
            lse = whole
    else:
        out = found
    if dead is not None:
        out.masked_fill_(dead[:, None, None], 0.0)
        if lse is not None:
            lse = lse.masked_fill(dead, -torch.inf)
    return out, lse


def nothing_seen_packed(inputs: AttentionInputs) -> Result:
    """The same as nothing_seen, with the lse that sinks are joined to."""
    out, lse = nothing_seen(inputs)
    if inputs.sinks is not None and lse is None:
        lse = empty_lse(inputs.q).fill_(-torch.inf)
    return out, lse


def _dead(inputs: AttentionInputs, ends_q: list[int], ends_k: list[int]) -> Tensor | None:
    """The rows that see no key, bool (total_q,), those behind the last sequence among them; None if there are none."""
    found = []
    for first, last, first_k, last_k in zip(ends_q, ends_q[1:], ends_k, ends_k[1:]):
        keys = last_k - first_k
        count = masks.dead_rows(last - first, keys, inputs.band)
        found += [True] * count + [False] * (last - first - count)
    found += [True] * (inputs.q.shape[0] - len(found))
    return torch.tensor(found).to(inputs.q.device) if any(found) else None
