"""Passages that answers cite: a shelf of them, search, diagnosis from signs, and support checks."""
