"""The Serve deployment that takes HTTP, classifies, and calls the model."""
