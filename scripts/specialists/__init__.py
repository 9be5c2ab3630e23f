"""The twelve specialists: every script in order, from data to the report."""
