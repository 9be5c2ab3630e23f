"""One stage per file, run as `python -m scripts.<stage> --help`."""
