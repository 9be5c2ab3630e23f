"""Question -> specialty -> route. A library: no ray, no HTTP, no torch."""
