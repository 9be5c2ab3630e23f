"""Question sets and measures for the reference shelf."""
