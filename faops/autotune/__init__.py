"""Tuning: searching for the fastest kernel and config of a problem, and remembering it per device.

Only :mod:`faops.autotune.cache` and what it needs is imported at call time; searching and measuring are imported by
those who tune.
"""
