"""Read a YAML file of rules or phrases, packed or not, once."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts.datasets.record import open_packed


@cache
def read_yaml(file: Path) -> dict[str, Any]:
    with open_packed(file) as opened:
        found: dict[str, Any] = yaml.safe_load(opened)
    return found
