"""Triton on Ascend NPUs, through triton-ascend: a kernel, configs and checks of their own."""
