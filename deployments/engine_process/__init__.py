"""The engine's core in a process of its own, which shares no interpreter with Ray Serve."""
