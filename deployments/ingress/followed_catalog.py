"""The adapters in service as a router replica knows them, followed as the live catalogue changes.

Like the classifier (router_reloading.py): a thread looks every few seconds, a change of this
replica's own is taken over at once, and a catalogue that cannot be read changes nothing.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.catalog import Catalog
from adapters.store import AdapterStore
from adapters.versions import RegisteredAdapter
from deployments.messages import AdapterCard

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class InService:
    """`by_specialty`: specialty -> the adapter's name, for the router's policy."""

    revision: int
    cards: tuple[AdapterCard, ...]
    by_specialty: Mapping[str, str]


class FollowedCatalog:
    """`current` is replaced as a whole, so whoever took it may go on with it.

    Args:
        period_s: seconds between two looks; 0 pauses.

    Raises:
        StorageError, CatalogError: the first look fails.
    """

    def __init__(self, store: AdapterStore, base_model: str, period_s: Callable[[], float]) -> None:
        self.store = store
        self._base_model = base_model
        self._period_s = period_s
        self._stamp = store.etag()
        self.current = in_service(store.read(), base_model)
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="catalog-follow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def refresh(self) -> bool:
        """Look now; True when another revision came into force. Never raises."""
        with self._lock:
            try:
                stamp = self.store.etag()
                if stamp == self._stamp:
                    self.problem = None
                    return False
                fresh = in_service(self.store.read(), self._base_model)
            except (OSError, ValueError) as error:
                if self.problem != str(error):
                    logger.error("kept revision %d: %s", self.current.revision, error)
                self.problem = str(error)
                return False
            if fresh.revision < self.current.revision:
                logger.warning(
                    "the catalogue went from revision %d to %d: was state_dir put back?",
                    self.current.revision,
                    fresh.revision,
                )
            self.current, self._stamp, self.problem = fresh, stamp, None
            return True

    def _follow(self) -> None:
        while not self._stopped.wait(self._period_s() or PAUSED_CHECK_S):
            if self._period_s():
                self.refresh()


def in_service(catalog: Catalog, base_model: str) -> InService:
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
