"""OpenAI's endpoints: what their requests ask for, and the same answers in their shapes."""
