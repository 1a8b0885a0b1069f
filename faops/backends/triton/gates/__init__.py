"""Checks of the Triton kernels that need no GPU: each is compiled ahead of time and its code is read."""
