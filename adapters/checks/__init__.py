"""What the files of an adapter may hold."""
