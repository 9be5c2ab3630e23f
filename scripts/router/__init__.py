"""Data and encoder of the router."""
