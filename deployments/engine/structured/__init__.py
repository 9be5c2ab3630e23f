"""Answers that keep to a grammar: which tokens may come next, for the rows that ask."""
