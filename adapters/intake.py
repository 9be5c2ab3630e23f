"""A new version on its way in: fetched, checked file by file, kept; not yet listed.

What needs the base model (do its layers fit, does it change the logits) is asked of a model
replica afterwards, and only then is the version listed.
"""

import datetime
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from adapters.base_models import sha256_of
from adapters.catalog import AdapterEntry
from adapters.live_catalog import AdapterVersion, bundle_digest
from adapters.sources import SourceLimits, fetch
from adapters.state_files import BUNDLE_FILES, WEIGHTS, StateError
from adapters.store import AdapterStore
from adapters.validation import CONFIG_FILE, MAX_RANK, WEIGHTS_FILE, check_adapter


class IntakeRefused(ValueError):
    """The adapter is not fit for service. `problems` holds one line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What the operator asks for.

    `specialty` None: the one that the adapter has; `base_model`: the one that is served.
    """

    name: str
    specialty: str | None
    base_model: str
    version: str
    source: str


def take_in(
    wanted: NewVersion,
    store: AdapterStore,
    limits: SourceLimits,
    *,
    max_rank: int = MAX_RANK,
) -> AdapterVersion:
    """Fetch, check and keep the files of a new version.

    Raises:
        IntakeRefused: every problem of the files; nothing was kept.
        SourceError: they cannot be had; nothing was kept.
        StateError: there is no room for them, or no right to write; nothing was kept.
    """
    with tempfile.TemporaryDirectory(prefix="adapter-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        try:
            fetch(wanted.source, folder, limits)
        except OSError as error:
            raise StateError(f"{scratch}: {error.strerror}") from error
        version = examine(folder, wanted, max_rank=max_rank)
        store.put(version.digest, folder)
    return version


def examine(folder: Path, wanted: NewVersion, *, max_rank: int = MAX_RANK) -> AdapterVersion:
    """The record of the adapter in `folder`.

    Raises:
        IntakeRefused: listing every problem, without the paths of this machine.
    """
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    sha256 = sha256_of(weights) if weights.is_file() else "0" * 64
    rank = _rank_of(config)
    problems = []
    try:
        entry = AdapterEntry(
            name=wanted.name,
            specialty=wanted.specialty or "any",  # the files do not name one
            base_model=wanted.base_model,
            path="new",
            sha256=sha256,
            version=wanted.version,
            rank=rank or 1,
        )
        problems += check_adapter(folder, entry, max_rank=max_rank)
    except ValidationError as error:
        problems += [f"{item['loc'][0]}: {item['msg']}" for item in error.errors()]
    if problems:
        shown = [problem.split("; restore it (")[0] for problem in problems]
        raise IntakeRefused([problem.replace(f"{folder}/", "") for problem in shown])
    config_sha256 = sha256_of(config)
    return AdapterVersion(
        version=wanted.version,
        sha256=sha256,
        config_sha256=config_sha256,
        path=f"{WEIGHTS}/{bundle_digest(config_sha256, sha256)}",
        source=wanted.source,
        rank=rank or 1,
        num_bytes=sum((folder / name).stat().st_size for name in BUNDLE_FILES),
        added_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _rank_of(config: Path) -> int | None:
    try:
        rank = json.loads(config.read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # check_adapter names the cause
    return rank if isinstance(rank, int) and 1 <= rank <= 1024 else None
