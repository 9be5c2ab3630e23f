"""The base models that adapters are made for."""
