"""Layers of flash-attn: rotary embedding."""
