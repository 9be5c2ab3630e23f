"""Training, merging and publishing LoRA adapters."""
