"""Phrases that are put around texts, read from a phrases.yaml: kind -> language -> phrases."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def read_phrases(file: Path) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """Return the file's phrases; a phrase is a text, or the texts before and after a question."""
    found: dict[str, dict[str, list[Any]]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found
