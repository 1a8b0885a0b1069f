"""Timing and checking candidates on a real device."""
