"""Benchmarks of faops: every figure beside its peers, measured in the same run. What and how: docs/benchmarks.md."""
