"""Would the adapter in this folder be taken? The checks of an add, without a clinic."""

import json
import os
import sys
from pathlib import Path

from adapters.ingest import IngestRefused, VersionRequest, inspected
from adapters.sources import SourceError, SourceLimits
from adapters.storage.protocol import StorageError
from adapters.validation import CONFIG_FILE


def verify_folder(folder: Path, base_model: str | None, max_rank: int) -> int:
    """Print the outcome; return 0 if the files would be taken, 1 if not, 2 if it cannot be told.

    Args:
        base_model: that it must be trained on; None if it is the one that the adapter names.
    """
    try:
        base = base_model or _base_of(folder)
        wanted = VersionRequest("checked", None, base, "1", os.path.abspath(folder))
        with inspected(wanted, SourceLimits(), max_rank=max_rank) as (_, found):
            print(f"{folder}: rank {found.rank}, {found.num_bytes} bytes, for {base}; a replica")
            print("has still to say whether it fits, and whether it changes the answers")
            print(f"prompt format: {found.prompt_format or 'not recorded: as the base model'}")
            return 0
    except (SourceError, StorageError) as error:
        return _told([str(error)], 2)
    except IngestRefused as error:
        return _told(error.problems, 1)


def _told(problems: list[str], status: int) -> int:
    for problem in problems:
        print(f"adapters: {problem}", file=sys.stderr)
    return status


def _base_of(folder: Path) -> str:
    """Return the base model that the adapter names.

    Raises:
        SourceError: it names none, or has no configuration.
    """
    file = folder / CONFIG_FILE
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{file}: {error!r}: is it an adapter's folder?") from None
    if not isinstance(base, str):
        raise SourceError(f"{file}: names no base model: give --base_model")
    return base
