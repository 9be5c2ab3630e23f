"""A new version on its way in: fetched, checked file by file, kept; not yet listed.

What needs the base model (do its layers fit, are its features served, does it change the logits)
is asked of a model replica afterwards, and only then is the version listed.
"""

import contextlib
import datetime
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.catalog import problems_of
from adapters.checks.patterns import check_patterns
from adapters.checks.safetensors_file import open_tensors
from adapters.prompting import PromptFormat
from adapters.sources import SourceLimits, fetch
from adapters.storage.protocol import WEIGHTS, StorageError
from adapters.store import AdapterStore
from adapters.validation import CONFIG_FILE, MAX_RANK, WEIGHTS_FILE, check_adapter, file_record
from adapters.versions import AdapterVersion, bundle_digest

_PREFIX = "base_model.model."  # PEFT's, before a layer's name


class IngestRefused(ValueError):
    """The adapter is not fit for service. `problems` holds one line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


@dataclass(frozen=True, slots=True)
class VersionRequest:
    """What the operator asks for."""

    name: str
    specialty: str | None  # None if it is the one that the adapter has
    base_model: str  # the one that is served
    version: str
    source: str
    prompt_format: PromptFormat | None = None  # None if it is the one that its files record


@dataclass(frozen=True, slots=True)
class Ingested:
    """Files that are kept and not yet listed. `token` is for AdapterStore.undo_put."""

    version: AdapterVersion
    token: str | None


def ingest(
    wanted: VersionRequest, store: AdapterStore, limits: SourceLimits, *, max_rank: int = MAX_RANK
) -> Ingested:
    """Fetch, check and keep the files of a new version.

    Raises:
        IngestRefused: every problem of the files; nothing was kept.
        SourceError: they cannot be fetched; nothing was kept.
        StorageError: there is no room for them, or no right to write; nothing was kept.
    """
    with inspected(wanted, limits, max_rank=max_rank) as (folder, version):
        return Ingested(version, store.put(version.digest, folder))


@contextlib.contextmanager
def inspected(
    wanted: VersionRequest, limits: SourceLimits, *, max_rank: int = MAX_RANK
) -> Iterator[tuple[Path, AdapterVersion]]:
    """Yield a temporary folder with the fetched files, and their record.

    Raises:
        IngestRefused, SourceError, StorageError: as `ingest`.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix="adapter-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"{tempfile.gettempdir()}: {error.strerror}") from error
    with scratch:
        folder = Path(scratch.name)
        fetch(wanted.source, folder, limits)
        yield folder, inspect_adapter(folder, wanted, max_rank=max_rank)


def inspect_adapter(
    folder: Path, wanted: VersionRequest, *, max_rank: int = MAX_RANK
) -> AdapterVersion:
    """Return the record of the adapter in `folder`.

    Raises:
        IngestRefused: lists every problem, without the paths of this machine.
    """
    problems = check_adapter(folder, wanted.base_model, max_rank=max_rank)
    if not problems:
        problems = [f"{CONFIG_FILE}: {line}" for line in _check_patterns(folder)]
    if problems:
        shown = [problem.split("; restore it (")[0] for problem in problems]
        raise IngestRefused([problem.replace(f"{folder}/", "") for problem in shown])
    record = file_record(folder)
    if wanted.prompt_format is not None:
        record["prompt_format"] = wanted.prompt_format
    try:
        return AdapterVersion(
            version=wanted.version,
            path=f"{WEIGHTS}/{bundle_digest(record['config_sha256'], record['sha256'])}",
            source=wanted.source,
            rank=_read_config(folder)["r"],
            added_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **record,
        )
    except ValidationError as error:
        raise IngestRefused(problems_of(error)) from None


def _check_patterns(folder: Path) -> list[str]:
    """Check the patterns of an adapter whose files are good one by one."""
    with open_tensors(folder / WEIGHTS_FILE) as tensors:
        layers = [tensor.name.removeprefix(_PREFIX).split(".lora_")[0] for tensor in tensors]
    return check_patterns(_read_config(folder), layers)


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config
