"""The Serve deployment that holds the base model and the tiers of its adapters."""
