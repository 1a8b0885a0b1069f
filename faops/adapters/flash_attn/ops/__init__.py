"""Operators of flash-attn that have a counterpart here."""
