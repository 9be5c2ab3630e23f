"""Hold the base models as the fast decoder runs them."""
