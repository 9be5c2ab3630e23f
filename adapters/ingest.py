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
from adapters.patterns import check_patterns
from adapters.safetensors_file import open_tensors
from adapters.sources import SourceLimits, fetch
from adapters.storage.local import BUNDLE_FILES, WEIGHTS, StorageError
from adapters.store import AdapterStore
from adapters.validation import CONFIG_FILE, MAX_RANK, WEIGHTS_FILE, check_adapter

_PREFIX = "base_model.model."  # PEFT's, before a layer's name


class IngestRefused(ValueError):
    """The adapter is not fit for service. `problems` holds one line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


@dataclass(frozen=True, slots=True)
class VersionRequest:
    """What the operator asks for.

    `specialty` None: the one that the adapter has; `base_model`: the one that is served.
    """

    name: str
    specialty: str | None
    base_model: str
    version: str
    source: str


@dataclass(frozen=True, slots=True)
class Ingested:
    """Files that are kept and not yet listed. `mark`: for AdapterStore.undo_put."""

    version: AdapterVersion
    mark: str | None


def ingest(
    wanted: VersionRequest,
    store: AdapterStore,
    limits: SourceLimits,
    *,
    max_rank: int = MAX_RANK,
) -> Ingested:
    """Fetch, check and keep the files of a new version.

    Raises:
        IngestRefused: every problem of the files; nothing was kept.
        SourceError: they cannot be had; nothing was kept.
        StorageError: there is no room for them, or no right to write; nothing was kept.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix="adapter-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"{tempfile.gettempdir()}: {error.strerror}") from error
    with scratch:
        folder = Path(scratch.name)
        fetch(wanted.source, folder, limits)
        version = inspect_adapter(folder, wanted, max_rank=max_rank)
        mark = store.put(version.digest, folder)
    return Ingested(version, mark)


def inspect_adapter(
    folder: Path, wanted: VersionRequest, *, max_rank: int = MAX_RANK
) -> AdapterVersion:
    """The record of the adapter in `folder`.

    Raises:
        IngestRefused: listing every problem, without the paths of this machine.
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
    if not problems:
        problems += [f"{CONFIG_FILE}: {line}" for line in _check_patterns(folder)]
    if problems:
        shown = [problem.split("; restore it (")[0] for problem in problems]
        raise IngestRefused([problem.replace(f"{folder}/", "") for problem in shown])
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


def _check_patterns(folder: Path) -> list[str]:
    """Of an adapter whose files are good one by one."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    with open_tensors(folder / WEIGHTS_FILE) as tensors:
        layers = [tensor.name.removeprefix(_PREFIX).split(".lora_")[0] for tensor in tensors]
    return check_patterns(config, layers)


def _rank_of(config: Path) -> int | None:
    try:
        rank = json.loads(config.read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # check_adapter names the cause
    return rank if isinstance(rank, int) and 1 <= rank <= 1024 else None
