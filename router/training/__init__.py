"""Training of the router; serving never imports it."""
