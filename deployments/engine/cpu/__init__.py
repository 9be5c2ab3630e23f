"""Run the int8 decoder of a CPU: one compiled step over all layers."""
