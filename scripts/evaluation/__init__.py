"""Scoring answers of adapters."""
