"""Where flash-attn keeps its Triton kernels; here the same functions in torch operations."""
