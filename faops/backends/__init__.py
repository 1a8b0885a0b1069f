"""Backends: each folder registers its kernels with :mod:`faops.registry` and imports its heavy package at first launch."""
