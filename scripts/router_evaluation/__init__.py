"""Evaluation of the router."""
