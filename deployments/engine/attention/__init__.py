"""Hold the KV cache and the attention over it, for prompts and for decode steps."""
