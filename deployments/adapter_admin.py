"""Changing the adapters of a running clinic: take in, try out, list, tell every replica, confirm.

No HTTP and no ray: admin_api.py is the face, the router deployment hands in how to reach the
replicas. An outcome comes only when every running replica has confirmed the new revision, or names
those that have not and why; they converge by themselves later.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from adapters import changes
from adapters.catalog import Catalog, CatalogError
from adapters.changes import Activation, ChangeRefused
from adapters.ingest import Ingested, VersionRequest, ingest
from adapters.pins import check_pins
from adapters.sources import SourceLimits
from adapters.storage.protocol import StorageError
from adapters.store import RevisionMoved
from adapters.versions import AdapterVersion
from deployments.admin_views import shown, unconfirmed_of
from deployments.ingress.followed_catalog import FollowedCatalog

logger = logging.getLogger(__name__)

CONFIRM_TIMEOUT_S = 60.0
TRY_TIMEOUT_S = 60.0
MAX_INTAKES = 4  # new versions that are fetched and checked at the same time; others wait

Edit = Callable[[Catalog], Catalog]


class NotFit(ValueError):
    """A model replica cannot serve this version. `problems`: one line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(problems))


class NobodyToAsk(RuntimeError):
    """No model replica answered, so a new version could not be tried."""


@dataclass(frozen=True, slots=True)
class BroadcastReply:
    """What the replicas answered.

    reports: what each one holds (AdapterManager.report, with `replica` and `error`).
    silent: replicas that run and did not answer, by name, with the cause; a count stands in for
        names that are not known.
    """

    reports: Sequence[Mapping[str, Any]]
    silent: Mapping[str, str]


class Replicas(Protocol):
    """How to reach the model replicas and the other router replicas."""

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        """One model replica's answer; raises NobodyToAsk."""

    async def tell(self, timeout_s: float) -> BroadcastReply:
        """Every router replica, then every model replica, follows the catalogue now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change that was made. `unconfirmed`: replica -> why; empty: it is live everywhere."""

    revision: int
    adapter: dict[str, Any] | None
    num_replicas: int
    unconfirmed: Mapping[str, str]


class AdapterAdmin:
    """
    Args:
        catalog: this router replica's; it takes over a change at once.
        num_places: adapters on the device of one model replica, at least.
    """

    def __init__(
        self,
        catalog: FollowedCatalog,
        replicas: Replicas,
        base_model: str,
        *,
        max_rank: int,
        num_places: int,
        limits: SourceLimits | None = None,
    ) -> None:
        self._catalog = catalog
        self._replicas = replicas
        self.base_model = base_model
        self._max_rank = max_rank
        self._num_places = num_places
        self._limits = limits or SourceLimits()
        # Threads of their own: a slow source may not hold those that classify questions.
        self._intakes = ThreadPoolExecutor(MAX_INTAKES, thread_name_prefix="take-in")
        self._running: set[asyncio.Task[Outcome]] = set()

    async def listed(self) -> dict[str, Any]:
        """Every adapter of the catalogue, and where each version in service is."""
        catalog = await asyncio.to_thread(self._catalog.store.read)
        told = await self._replicas.tell(CONFIRM_TIMEOUT_S)
        return {
            "revision": catalog.revision,
            "state": self._catalog.store.location,
            "base_model": self.base_model,
            "replicas": [str(report["replica"]) for report in told.reports],
            "unconfirmed": unconfirmed_of(catalog, self.base_model, told.reports, told.silent),
            "adapters": [shown(adapter, told.reports) for adapter in catalog.adapters],
        }

    async def add(
        self,
        wanted: VersionRequest,
        *,
        activation: Activation,
        weight: float | None,
        pinned: bool | None,
        expected_revision: int | None,
    ) -> Outcome:
        """
        Raises:
            ChangeRefused, RevisionMoved: it collides with the catalogue.
            SourceError, IngestRefused, NotFit: the files are not to be had, or not fit.
            NobodyToAsk, StorageError
        """

        def edit(catalog: Catalog, version: AdapterVersion) -> Catalog:
            return changes.add_version(
                catalog,
                name=wanted.name,
                specialty=wanted.specialty,
                base_model=wanted.base_model,
                version=version,
                activation=activation,
                weight=weight,
                pinned=pinned,
            )

        store = self._catalog.store
        # A collision is found before anything is fetched, with a record that stands in.
        stand_in = _stand_in(wanted)
        self._within_places(lambda catalog: edit(catalog, stand_in))(
            await asyncio.to_thread(store.read)
        )
        return await self._to_its_end(self._add(wanted, edit, expected_revision))

    async def _add(
        self,
        wanted: VersionRequest,
        edit: Callable[[Catalog, AdapterVersion], Catalog],
        expected_revision: int | None,
    ) -> Outcome:
        store = self._catalog.store
        taken: Ingested = await asyncio.get_running_loop().run_in_executor(
            self._intakes,
            functools.partial(ingest, wanted, store, self._limits, max_rank=self._max_rank),
        )
        version = taken.version
        try:
            problems = await self._replicas.try_adapter(wanted.name, version)
            if problems:
                raise NotFit(problems)
            return await self._change(
                wanted.name, lambda catalog: edit(catalog, version), expected_revision
            )
        except (NotFit, NobodyToAsk, ChangeRefused, RevisionMoved, StorageError):
            await asyncio.to_thread(self._take_back, taken)
            raise

    def _take_back(self, taken: Ingested) -> None:
        store, digest = self._catalog.store, taken.version.digest
        try:
            if digest not in store.read().digests:
                store.undo_put(digest, taken.token)
        except (StorageError, CatalogError) as error:  # they go when they are old
            logger.warning("files of a refused adapter stay: %s", error)

    async def _to_its_end(self, change: Coroutine[Any, Any, Outcome]) -> Outcome:
        """A client that leaves does not stop a change half-way: its files are listed or deleted,
        and every replica is told."""
        task = asyncio.create_task(change)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def update(
        self, name: str, fields: Mapping[str, Any], expected_revision: int | None
    ) -> Outcome:
        """`fields`: of changes.update; raises what it raises."""
        return await self._to_its_end(
            self._change(
                name, lambda catalog: changes.update(catalog, name, **fields), expected_revision
            )
        )

    async def roll_back(self, name: str, expected_revision: int | None) -> Outcome:
        return await self._to_its_end(
            self._change(name, lambda catalog: changes.roll_back(catalog, name), expected_revision)
        )

    async def remove(self, name: str, expected_revision: int | None) -> Outcome:
        return await self._to_its_end(
            self._change(name, lambda catalog: changes.remove(catalog, name), expected_revision)
        )

    def _within_places(self, edit: Edit) -> Edit:
        """`edit`, refused where it pins more than a replica has places for."""

        def checked(catalog: Catalog) -> Catalog:
            edited = edit(catalog)
            check_pins(catalog, edited, self.base_model, num_slots=self._num_places)
            return edited

        return checked

    async def _change(self, name: str, edit: Edit, expected_revision: int | None) -> Outcome:
        store = self._catalog.store

        def swap() -> Catalog:
            changed = store.change(self._within_places(edit), expected_revision=expected_revision)
            self._catalog.refresh()
            try:
                store.collect()
            except OSError as error:  # the change itself is made
                logger.warning("old adapter files stay: %s", error)
            return changed

        catalog = await asyncio.to_thread(swap)
        told = await self._replicas.tell(CONFIRM_TIMEOUT_S)
        unconfirmed = unconfirmed_of(catalog, self.base_model, told.reports, told.silent)
        for replica, why in unconfirmed.items():
            logger.error("revision %d: replica %s: %s", catalog.revision, replica, why)
        adapter = catalog.adapter(name)
        return Outcome(
            catalog.revision,
            shown(adapter, told.reports) if adapter else None,
            len(told.reports) + len(told.silent),
            unconfirmed,
        )


def _stand_in(wanted: VersionRequest) -> AdapterVersion:
    """A record with this version's name, to see whether the catalogue would take it."""
    zeros = "0" * 64
    return AdapterVersion(
        version=wanted.version,
        sha256=zeros,
        config_sha256=zeros,
        path="new",
        source="new",
        rank=1,
        num_bytes=0,
        added_at="",
    )
