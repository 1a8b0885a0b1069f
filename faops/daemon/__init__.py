"""Tuning in the background: a process that tunes what programs ran untuned, while their device is idle.

It is optional: the library works without it and never waits for it. The process itself imports no torch, so that it
stays small; whatever needs torch is done by a child process (:mod:`faops.daemon.worker`) that lives only while there
is work. Its extra: ``pip install 'faops[daemon]'``.
"""
