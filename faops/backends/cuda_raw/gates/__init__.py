"""Checks of the compiled kernels that need no GPU: their machine code, and what the emulator counts."""
