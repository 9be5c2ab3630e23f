"""Bodies of requests and replies: one model describes each, for parsing, sending and OpenAPI."""
