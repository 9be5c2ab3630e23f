"""The seed's form of before 0.2: one flat entry for each adapter. Read for one release.

python -m adapters.legacy_seed FOLDER      # writes FOLDER/catalog.yaml in today's form
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.validation import NO_FILE, file_record
from adapters.versions import SEED_PATH, SEED_SOURCE

logger = logging.getLogger(__name__)

_OF_VERSION = ("sha256", "rank", "languages", "evaluation")


def is_old_form(content: Any) -> bool:
    """Say whether a seed's content lacks today's `revision`; an empty file does too."""
    return content is None or (isinstance(content, dict) and "revision" not in content)


def converted(content: dict[str, Any] | None, directory: Path) -> dict[str, Any]:
    """Return the content in today's form, which is still to be validated.

    What the old form did not hold (checksum of the configuration, bytes) is read from the files;
    a missing file gets a checksum that no file has.
    """
    found = content or {}
    entries = found.get("adapters", [])
    if isinstance(entries, list):
        if entries:
            logger.warning(
                "%s/catalog.yaml has the form of before 0.2, which the next release no longer "
                "reads: convert it with `python -m adapters.legacy_seed %s`",
                directory,
                directory,
            )
        entries = [_converted(entry, directory) for entry in entries]
    return {"revision": 0, **found, "adapters": entries}


def _converted(entry: Any, directory: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    left = dict(entry)
    version = {key: left.pop(key) for key in _OF_VERSION if key in left}
    path = left.pop("path", None)
    if isinstance(path, str):
        version = file_record(directory / path) | version | {"path": f"{SEED_PATH}{path}"}
    if "version" in left:
        version["version"] = left["version"]
    return {"state": "active", **left, "versions": [version | {"source": SEED_SOURCE}]}


def main(argv: Sequence[str]) -> int:
    from adapters.catalog import CatalogError, load_catalog  # they import this module
    from adapters.seed import write_seed

    if len(argv) != 1:
        print("usage: python -m adapters.legacy_seed FOLDER", file=sys.stderr)
        return 2
    folder = Path(argv[0])
    try:
        catalog = load_catalog(folder)
        for adapter in catalog.adapters:
            if adapter.stable.config_sha256 == NO_FILE:
                raise CatalogError(folder, [f"adapter '{adapter.name}': its files are missing"])
        write_seed(folder, catalog)
    except (CatalogError, OSError) as error:
        print(f"adapters.legacy_seed: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
