"""Where the live catalogue is kept."""
