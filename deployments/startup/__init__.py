"""What the launcher and the preflight ask of the machine and of the configuration."""
