"""Weights of eight and four bits, as the fast decoder multiplies them."""
