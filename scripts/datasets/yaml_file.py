"""Read a YAML file of rules or phrases once."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def read_yaml(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found
