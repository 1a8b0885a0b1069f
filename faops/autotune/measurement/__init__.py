"""Timing and checking candidates on a real device, in a process of their own.

:mod:`remote` is what a tuner uses: it speaks to a :mod:`worker` through :mod:`process`, and the worker measures with
:mod:`bench`, by one of the :mod:`clocks`. :mod:`pool` has candidates compiled beforehand.
"""
