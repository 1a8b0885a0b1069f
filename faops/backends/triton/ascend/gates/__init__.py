"""Gates on the Ascend kernel: what triton-ascend makes of it, without an NPU. See docs/kernels/triton_ascend.md."""
