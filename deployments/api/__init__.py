"""HTTP: routes, requests, replies, keys and limits. No ray, no torch."""
