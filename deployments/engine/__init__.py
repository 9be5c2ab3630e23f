"""Generate answers: requests, scheduling, decoding. No ray, no starlette: usable from a script."""
