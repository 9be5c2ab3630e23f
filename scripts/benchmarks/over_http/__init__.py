"""A private Serve for a benchmark, the clients that ask it over HTTP, and what both take."""
