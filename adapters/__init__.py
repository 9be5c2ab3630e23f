"""Base models, adapters, their catalogue, and the prompt format of training and serving."""
