"""The base models, as the engine runs them."""
