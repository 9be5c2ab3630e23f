"""One stage per file, run as `python -m scripts.<stage> --help`."""

import sys
from pathlib import Path

# First on the path, where `python -m` has the working folder: a `router.py` there is not ours.
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
