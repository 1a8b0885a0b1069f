"""The search over kernels and configs of one problem."""
