"""Backends: each folder registers its kernels with :mod:`faops.registry`; imports heavy packages at launch."""
