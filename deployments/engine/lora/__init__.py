"""Read LoRA adapters, keep them in slots, and multiply by them in mixed batches."""
