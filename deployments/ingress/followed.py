"""What a router replica follows while it serves: the adapters, the classifier and the API keys."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.catalog import Catalog
from adapters.store import AdapterStore
from adapters.versions import RegisteredAdapter
from deployments.api.access.api_keys import (
    FILE_NAME,
    KeyFileError,
    KeyRecord,
    KeyStore,
    KeyTable,
    is_another_file,
    kept_keys,
)
from deployments.ingress.followed_classifier import follow_classifier
from deployments.messages import AdapterCard
from deployments.reloader import Reloader
from deployments.settings import Settings
from router.classifier import Classifier

logger = logging.getLogger(__name__)

# A key that was created or revoked counts within a second on every router replica.
KEYS_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class InService:
    """The adapters in service. by_specialty: specialty -> the adapter's name."""

    revision: int
    cards: tuple[AdapterCard, ...]
    by_specialty: Mapping[str, str]


def follow_catalog(
    store: AdapterStore, base_model: str, period_s: Callable[[], float]
) -> Reloader[InService]:
    """Follow the adapters of a base model, at first from this node's copy if need be.

    Raises:
        StorageError, CatalogError: the first look fails, and there is no copy.
    """
    first: InService | None = None
    try:
        store.read()
    except (OSError, ValueError):  # the reloader's first look says why
        first = in_service(store.read_or_last_good(), base_model)
    return Reloader(
        # None is what the reloader has seen before its first look.
        lambda: store.etag() or (None if first is None else "gone"),
        lambda: in_service(store.read(), base_model),
        period_s,
        first=first,
        describe=lambda found: f"catalogue revision {found.revision}",
        on_change=_warn_of_an_older_revision,
    )


def _warn_of_an_older_revision(before: InService, after: InService) -> None:
    if after.revision < before.revision:
        logger.warning(
            "the catalogue went from revision %d to %d: was state_dir put back?",
            before.revision,
            after.revision,
        )


def in_service(catalog: Catalog, base_model: str) -> InService:
    """Return what of the catalogue serves a base model."""
    adapters = catalog.in_service(base_model)
    return InService(
        catalog.revision,
        tuple(_card(adapter) for adapter in adapters),
        {adapter.specialty: adapter.name for adapter in adapters},
    )


def _card(adapter: RegisteredAdapter) -> AdapterCard:
    canary = adapter.canary
    return AdapterCard(
        adapter.name,
        adapter.specialty,
        adapter.version,
        canary.version if canary else None,
        canary.weight if canary else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Followed:
    """All that a router replica follows."""

    classifier: Reloader[Classifier]
    catalog: Reloader[InService]
    keys: Reloader[KeyTable]

    @property
    def problems(self) -> list[str]:
        """What keeps this replica from following, while it serves with what it had before."""
        found = (followed.problem for followed in self._all)
        return [problem for problem in found if problem is not None]

    def start(self) -> None:
        for followed in self._all:
            followed.start()

    def stop(self) -> None:
        for followed in self._all:
            followed.stop()

    @property
    def _all(self) -> tuple[Reloader[Any], ...]:
        return self.classifier, self.catalog, self.keys


def follow_all(settings: Settings, store: AdapterStore, period_s: Callable[[], float]) -> Followed:
    """Follow the classifier, the adapters and the keys; `start` must follow.

    Raises:
        ArtefactError, StorageError, CatalogError: a first look fails.
    """
    return Followed(
        follow_classifier(settings, period_s, store if settings.router_is_in_state else None),
        follow_catalog(store, settings.base_model, period_s),
        follow_keys(KeyStore(settings.state_path), kept_keys(settings.state_path)),
    )


def follow_keys(store: KeyStore, kept: KeyStore | None = None) -> Reloader[KeyTable]:
    """Follow the key file. Before a first good file the keys of this node's copy are valid, or
    none.

    A file that breaks or disappears, or that another one without any of its keys has replaced,
    changes nothing: keys are taken back with `python -m deployments.keys revoke`, not by deleting
    the file.

    Args:
        kept: the copy; None: there is none.
    """
    known = _kept_records(kept)

    def etag() -> object:
        # Not None, which the reloader takes for what it has seen already.
        return store.etag() or ("gone" if known else None)

    def load() -> KeyTable:
        if store.etag() is None:  # called when the etag changed, so there was a file
            raise KeyFileError(f"{FILE_NAME}: is gone")
        records = store.read()
        if is_another_file(records, _kept_records(kept)):
            assert kept is not None, "without a copy no key is known"
            raise KeyFileError(
                f"{FILE_NAME}: has none of the keys from before: put the old one back, or, to "
                f"begin again with these, remove {kept.path} on every node"
            )
        _keep_records(kept, records)
        return KeyTable(records)

    return Reloader(
        etag,
        load,
        lambda: KEYS_PERIOD_S,
        first=KeyTable(known),
        describe=lambda table: f"{len(table)} keys ({table.num_admins} admin keys)",
        explain=_explain_keys,
    )


def _kept_records(kept: KeyStore | None) -> tuple[KeyRecord, ...]:
    try:
        return kept.read() if kept is not None else ()
    except KeyFileError as error:
        logger.error("this node's copy of the keys cannot be used: %s", error)
        return ()


def _keep_records(kept: KeyStore | None, records: tuple[KeyRecord, ...]) -> None:
    if kept is None:
        return
    try:
        kept.replace(records)
    except (OSError, KeyFileError) as error:
        logger.warning("no copy of the keys for the time state_dir is away: %s", error)


def _explain_keys(error: Exception, kept: KeyTable) -> str:
    # An OSError's text holds the path, which /readyz would show to anybody.
    cause = str(error) if isinstance(error, KeyFileError) else type(error).__name__
    return f"{cause}; {len(kept)} keys from before stay in force"
