"""What ``python -m benchmarks.gpu_suite`` does on an NVIDIA GPU, one part a module."""
