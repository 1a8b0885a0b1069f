"""Kernels for inference: prefill and decode on the fused, the prompt and the incremental operator of torch_npu."""
