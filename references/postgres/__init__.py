"""The shelf on a PostgreSQL server."""
