"""LoRA adapters in a batch: reading, slots, the product."""
