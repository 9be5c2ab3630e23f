"""Base models to measure with."""
