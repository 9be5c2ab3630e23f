"""Where the catalogue and the adapters' files are kept."""
