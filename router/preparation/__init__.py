"""Prepare a text for the classifier, step by step."""
