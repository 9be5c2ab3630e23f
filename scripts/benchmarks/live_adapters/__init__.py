"""Adapters that come, go and change in a running service."""
