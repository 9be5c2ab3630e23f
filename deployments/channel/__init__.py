"""Token events from model replicas to router replicas, outside of Serve's own streams."""
