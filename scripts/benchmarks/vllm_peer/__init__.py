"""vLLM with LoRA adapters as a peer on a GPU, in an interpreter that has it."""
