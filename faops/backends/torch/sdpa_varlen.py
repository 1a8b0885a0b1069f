"""Packed sequences through PyTorch's own attention, one sequence after the other.

The limits are those of dense SDPA. Causal is top-left there, which is right for every sequence with as many rows as
keys; a sequence with other lengths goes through the blockwise functions, which compute the same (out, lse).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from faops.backends.torch.blockwise import clear_padding, features_of, sequences
from faops.backends.torch.blockwise_backward import Gradients, attend_backward
from faops.backends.torch.blockwise_forward import attend
from faops.backends.torch.sdpa import Sdpa, is_causal, shared_reasons
from faops.backends.torch.sdpa_cpu import cpu_backward, cpu_forward, cpu_reasons, widened
from faops.backends.torch.threads import cpu_threads
from faops.device import DeviceProfile
from faops.inputs import AttentionInputs, BackwardInputs
from faops.layout import empty_lse, empty_out
from faops.problem import AttentionProblem
from faops.registry import Config, Decision, decide

# For the odd sequence that SDPA cannot do; who has many of them is better served by the blockwise kernel as a whole.
BLOCKS = Config(block_q=256, block_k=512, block_h=8)


def _reasons(problem: AttentionProblem, device: DeviceProfile) -> Iterator[str]:
    if problem.layout != "varlen":
        yield f"it runs packed sequences; the layout is {problem.layout}"
    # The longest sequences stand for all: what differs between the others is seen at launch.
    yield from shared_reasons(replace(problem, layout="dense"), device)
    yield from cpu_reasons(device)
    if problem.mask:
        yield "SDPA reports lse 0 instead of -inf for rows that the mask leaves without a key"
    if problem.lse_grad:
        yield "SDPA has no gradient through lse"


class SdpaVarlenForward(Sdpa):
    """SDPA's CPU kernel, once a sequence."""

    name = "sdpa_varlen_forward"
    op = "forward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(_reasons(problem, device))

    def launch(self, inputs: AttentionInputs, config: Config) -> tuple[Tensor, Tensor | None]:
        assert inputs.cu_seqlens_q is not None and inputs.cu_seqlens_k is not None
        q, k, v = widened(config.integer("upcast"), inputs.q, inputs.k, inputs.v)
        causal = is_causal(inputs)
        out = empty_out(inputs.q, v.shape[-1])
        lse = empty_lse(inputs.q)
        with cpu_threads(config.integer("threads")):
            clear_padding(inputs.cu_seqlens_q, out, lse)
            for index, rows, keys in sequences(inputs.cu_seqlens_q, inputs.cu_seqlens_k):
                own = (q[None, rows], k[None, keys], v[None, keys])
                if _same_in_sdpa(rows, keys, causal):
                    out[None, rows], lse[None, :, rows] = cpu_forward(*own, causal, inputs.scale)
                else:
                    part = features_of(inputs).segment(index, rows.stop - rows.start, keys.stop - keys.start)
                    attend(*own, part, BLOCKS, out[None, rows], lse[None, :, rows])
        return out, lse if inputs.need_lse else None


class SdpaVarlenBackward(Sdpa):
    """The backward of SDPA's CPU kernel, once a sequence."""

    name = "sdpa_varlen_backward"
    op = "backward"

    def check(self, problem: AttentionProblem, device: DeviceProfile) -> Decision:
        return decide(_reasons(problem, device))

    def launch(self, inputs: BackwardInputs, config: Config) -> tuple[Tensor, Tensor, Tensor, None, None]:
        forward = inputs.forward
        assert forward.cu_seqlens_q is not None and forward.cu_seqlens_k is not None
        given = (inputs.dout, forward.q, forward.k, forward.v, inputs.out)
        all_dout, q, k, v, all_out = widened(config.integer("upcast"), *given)
        causal = is_causal(forward)
        dq, dk, dv = (empty_out(tensor, tensor.shape[-1]) for tensor in (forward.q, forward.k, forward.v))
        with cpu_threads(config.integer("threads")):
            clear_padding(forward.cu_seqlens_q, dq, None)
            clear_padding(forward.cu_seqlens_k, dk, None)
            clear_padding(forward.cu_seqlens_k, dv, None)
            for index, rows, keys in sequences(forward.cu_seqlens_q, forward.cu_seqlens_k):
                own = (q[None, rows], k[None, keys], v[None, keys])
                dout, out, lse = all_dout[None, rows], all_out[None, rows], inputs.lse[None, :, rows]
                into = (dq[None, rows], dk[None, keys], dv[None, keys])
                if _same_in_sdpa(rows, keys, causal):
                    for target, gradient in zip(into, cpu_backward(dout, *own, out, lse, causal, forward.scale)):
                        target.copy_(gradient)
                else:
                    part = features_of(forward).segment(index, rows.stop - rows.start, keys.stop - keys.start)
                    attend_backward(dout, None, *own, out, lse, part, BLOCKS, Gradients(*into, None, None))
        return dq, dk, dv, None, None


def _same_in_sdpa(rows: slice, keys: slice, causal: bool) -> bool:
    """Whether SDPA means the same for this sequence: it has rows and keys, as many of both if causal."""
    lengths = (rows.stop - rows.start, keys.stop - keys.start)
    return 0 not in lengths and (not causal or lengths[0] == lengths[1])
