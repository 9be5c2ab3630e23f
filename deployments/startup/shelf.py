"""The reference shelf before Serve starts: whether it is used, and what is missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.startup.config_file import router_config


def uses_shelf(content: Mapping[str, Any]) -> bool:
    """Return whether answers stand on the shelf unless a request says otherwise."""
    references = router_config(content).get("references")
    if not isinstance(references, Mapping):
        return False
    return not {"quote", "cite"}.isdisjoint(str(references.get(key)) for key in ("mode", "named"))


def check_shelf(place: Path | str | None) -> tuple[list[str], list[str]]:
    """Return problems, and notes, of a shelf that is used.

    Args:
        place: its file, or its server's address; None: the default shelf, which `make serve`
            builds. A server that does not answer is a note: answers go on without it.
    """
    from references.default_shelf import open_shelf
    from references.ingest.hpo import installed_files
    from references.passage import ReferencesError

    where = "user_config of Router: references.mode"
    if place is not None:
        where = f"args.references.{'url' if isinstance(place, str) else 'path'}"
    try:
        shelf = open_shelf(place)  # which needs the word vectors
        if place is None:
            installed_files()
    except ReferencesError as error:
        return [f"{where}: {error}"], []
    try:
        return [], [f"{shelf.num_passages} passages on the reference shelf"]
    except ReferencesError as error:
        if isinstance(place, str):
            return [], [f"{where}: {error}; answers go on without it"]
        if place is not None:
            return [f"{where}: {error}"], []
    return [], ["the reference shelf will be built first, within a minute"]
