"""Changes adapters of a running application: fetch, try, swap the catalogue, broadcast, confirm.

Imports neither HTTP nor ray: the router deployment passes in how to reach the replicas. An outcome
comes when every running replica has confirmed the new revision, or names those that have not, and
why; these follow the catalogue later on their own.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from adapters import changes
from adapters.catalog import Catalog, CatalogError
from adapters.changes import Activation, ChangeRefused
from adapters.ingest import Ingested, VersionRequest, ingest
from adapters.pins import check_pins
from adapters.sources import SourceLimits
from adapters.storage.protocol import StorageError
from adapters.store import AdapterStore, RevisionMoved
from adapters.versions import AdapterVersion
from deployments.admin_views import shown, unconfirmed_of

logger = logging.getLogger(__name__)

CONFIRM_TIMEOUT_S = 60.0
REPORT_TIMEOUT_S = 5.0
TRY_TIMEOUT_S = 60.0
MAX_INGESTS = 4  # new versions that are fetched and checked at the same time; others wait
STATE_TIMEOUT_S = 60.0  # longer than the lock of another writer is waited for
_NUM_STATE_THREADS = 4

Edit = Callable[[Catalog], Catalog]
T = TypeVar("T")


class NotFit(ValueError):
    """A model replica cannot serve this version. `problems` has one line for each reason."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(problems))


class NobodyToAsk(RuntimeError):
    """A new version could not be tried, since no model replica answered."""


@dataclass(frozen=True, slots=True)
class BroadcastReply:
    """What the replicas answered.

    reports: what each model replica holds (ModelReplica.adapter_report).
    unreachable: the replicas that run and did not answer, by name, with the cause; those whose
        names are not known are counted in one entry.
    """

    reports: Sequence[Mapping[str, Any]]
    unreachable: Mapping[str, str]


class Replicas(Protocol):
    """How to reach the model replicas and the other router replicas."""

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        """Return what one model replica says against the version.

        Raises:
            NobodyToAsk
        """

    async def broadcast(self, timeout_s: float) -> BroadcastReply:
        """Make every router replica, then every model replica, follow the catalogue now."""

    async def reports(self, timeout_s: float) -> BroadcastReply:
        """Ask every replica what it holds, without any effect on it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change that was made. unconfirmed: replica -> why; empty if it is live everywhere."""

    revision: int
    adapter: dict[str, Any] | None
    num_replicas: int
    unconfirmed: Mapping[str, str]


class AdapterAdmin:
    """
    Args:
        refresh: makes this router replica take over a change at once.
        num_slots: adapters on the device of one model replica.
    """

    def __init__(
        self,
        store: AdapterStore,
        refresh: Callable[[], object],
        replicas: Replicas,
        base_model: str,
        *,
        max_rank: int,
        num_slots: int,
        limits: SourceLimits | None = None,
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._replicas = replicas
        self.base_model = base_model
        self._max_rank = max_rank
        self._num_slots = num_slots
        self._limits = limits or SourceLimits()
        # Not the threads that classify questions: a source may be slow, a file server may hang.
        self._ingesting = ThreadPoolExecutor(MAX_INGESTS, thread_name_prefix="ingest")
        self._state = ThreadPoolExecutor(_NUM_STATE_THREADS, thread_name_prefix="state")
        self._running: set[asyncio.Task[Outcome]] = set()

    async def listed(self) -> dict[str, Any]:
        """Return every adapter of the catalogue, and where each version in service is."""
        catalog = await self._on_state(self._store.read)
        reply = await self._replicas.reports(REPORT_TIMEOUT_S)
        return {
            "revision": catalog.revision,
            "state": self._store.location,
            "base_model": self.base_model,
            "replicas": [str(report["replica"]) for report in reply.reports],
            "unconfirmed": unconfirmed_of(
                catalog, self.base_model, reply.reports, reply.unreachable
            ),
            "adapters": [shown(adapter, reply.reports) for adapter in catalog.adapters],
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
        """Fetch, check and list a new version.

        Raises:
            ChangeRefused, RevisionMoved: it collides with the catalogue.
            SourceError, IngestRefused, NotFit: the files cannot be read, or cannot be served.
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

        # A collision is found before anything is fetched.
        check = self._within_slots(functools.partial(edit, version=_placeholder(wanted)))
        check(await self._on_state(self._store.read))
        return await self._to_its_end(self._add(wanted, edit, expected_revision))

    async def _add(
        self,
        wanted: VersionRequest,
        edit: Callable[..., Catalog],
        expected_revision: int | None,
    ) -> Outcome:
        ingested: Ingested = await asyncio.get_running_loop().run_in_executor(
            self._ingesting,
            functools.partial(ingest, wanted, self._store, self._limits, max_rank=self._max_rank),
        )
        try:
            problems = await self._replicas.try_adapter(wanted.name, ingested.version)
            if problems:
                raise NotFit(problems)
            listed = functools.partial(edit, version=ingested.version)
            return await self._change(wanted.name, listed, expected_revision)
        except (NotFit, NobodyToAsk, ChangeRefused, RevisionMoved, StorageError):
            with contextlib.suppress(StorageError):
                await self._on_state(lambda: self._undo_put(ingested))
            raise

    async def _on_state(self, work: Callable[[], T]) -> T:
        """Run what reads or changes the state. Raises StorageError where that hangs."""
        running = asyncio.get_running_loop().run_in_executor(self._state, work)
        try:
            return await asyncio.wait_for(running, STATE_TIMEOUT_S)
        except TimeoutError:
            raise StorageError(
                f"{self._store.location}: has not answered for {STATE_TIMEOUT_S:g} s: a change may "
                "yet be made; look at the list once it answers"
            ) from None

    def _undo_put(self, ingested: Ingested) -> None:
        store, digest = self._store, ingested.version.digest
        try:
            if digest not in store.read().digests:
                store.undo_put(digest, ingested.token)
        except (StorageError, CatalogError) as error:  # they go when they are old
            logger.warning("files of a refused adapter stay: %s", error)

    async def _to_its_end(self, change: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Finish `change` even if the client leaves, so that none is left half-done: its files are
        listed or deleted, and every replica hears of it."""
        task = asyncio.create_task(change)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def update(
        self, name: str, fields: Mapping[str, Any], expected_revision: int | None
    ) -> Outcome:
        """Change an adapter as adapters.changes.update does; raises what that raises."""
        edit = functools.partial(changes.update, name=name, **fields)
        return await self._edited(name, edit, expected_revision)

    async def roll_back(self, name: str, expected_revision: int | None) -> Outcome:
        edit = functools.partial(changes.roll_back, name=name)
        return await self._edited(name, edit, expected_revision)

    async def remove(self, name: str, expected_revision: int | None) -> Outcome:
        edit = functools.partial(changes.remove, name=name)
        return await self._edited(name, edit, expected_revision)

    async def _edited(self, name: str, edit: Edit, expected_revision: int | None) -> Outcome:
        return await self._to_its_end(self._change(name, edit, expected_revision))

    def _within_slots(self, edit: Edit) -> Edit:
        """Return `edit`, refused where it pins more than a replica has slots for."""

        def checked(catalog: Catalog) -> Catalog:
            edited = edit(catalog)
            check_pins(catalog, edited, self.base_model, num_slots=self._num_slots)
            return edited

        return checked

    async def _change(self, name: str, edit: Edit, expected_revision: int | None) -> Outcome:
        store = self._store

        def swap() -> Catalog:
            changed = store.change(self._within_slots(edit), expected_revision=expected_revision)
            self._refresh()
            try:
                store.collect()
            except OSError as error:  # the change itself is made
                logger.warning("old adapter files stay: %s", error)
            return changed

        catalog = await self._on_state(swap)
        reply = await self._replicas.broadcast(CONFIRM_TIMEOUT_S)
        unconfirmed = unconfirmed_of(catalog, self.base_model, reply.reports, reply.unreachable)
        for replica, why in unconfirmed.items():
            logger.error("revision %d: replica %s: %s", catalog.revision, replica, why)
        adapter = catalog.adapter(name)
        return Outcome(
            catalog.revision,
            shown(adapter, reply.reports) if adapter else None,
            len(reply.reports) + len(reply.unreachable),
            unconfirmed,
        )


def _placeholder(wanted: VersionRequest) -> AdapterVersion:
    """Return a record with this version's name, to see whether the catalogue would take it."""
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
