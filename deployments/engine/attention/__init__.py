"""Attention over prompts and over cached keys and values."""
