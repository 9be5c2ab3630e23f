"""Decide what each step computes, and run the steps: rows join and leave, or run in groups."""
