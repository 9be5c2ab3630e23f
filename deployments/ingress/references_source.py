"""The reference shelf as a router replica uses it: opened, followed and searched, never built."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ray.serve import metrics

from deployments.observe.tracing import spanned
from references.default_shelf import default_path, open_shelf
from references.passage import Passage, PassagesRefused, ReferencesError
from references.shelf import Hit, Shelf
from references.signs_question import MatchedDisease, asked_signs, diseases_asked_for
from references.version import Source

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # of a file system that hangs: the answer goes on without passages
LOOK_S = 0.5  # that /readyz waits for the shelf, and an answer for one that hangs
_NUM_THREADS = 2  # each keeps a connection and up to 10 MB of passages
_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5]
_COUNTS = [0.5, 1.5, 2.5, 3.5, 5.5, 10.5]
_SHARES = [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]
T = TypeVar("T")


class ReferencesSource:
    """Implements `messages.PassageSource`. The shelf is opened when it is first asked for; each
    search looks whether it was changed. It runs on threads of its own.

    Args:
        place: the shelf's file, or the address of its server; None: the default shelf's file.
        open_: returns the shelf that lies there.
    """

    def __init__(
        self,
        place: Path | str | None = None,
        open_: Callable[[Path | str], Shelf] = open_shelf,
    ) -> None:
        self._place = place or default_path()
        self._is_default = place is None
        self._open = open_
        self._shelf: Shelf | None = None
        self._problem: str | None = None
        self._known: tuple[str, int] | None = None  # version and passages, when last looked at
        self._looking: asyncio.Task[None] | None = None
        self._asked: dict[Future[Any], float] = {}  # what has not ended -> since when
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="references")
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="references-change")
        self._seconds = metrics.Histogram(
            "polyclinic_retrieval_s", "seconds to search the reference shelf", _SECONDS
        )
        self._found = metrics.Histogram(
            "polyclinic_passages_found", "passages found for a question", _COUNTS
        )
        self._unsupported = metrics.Histogram(
            "polyclinic_unsupported_share", "of a checked answer, before it is replaced", _SHARES
        )

    async def search(self, question: str, *, language: str | None, limit: int) -> list[Hit]:
        started = time.perf_counter()
        with spanned("retrieve"):
            hits = await self._on_shelf(
                lambda shelf: shelf.search(question, language=language, limit=limit)
            )
        self._seconds.observe(time.perf_counter() - started)
        self._found.observe(len(hits))
        return hits

    async def diseases(self, question: str, *, limit: int) -> list[MatchedDisease]:
        if not asked_signs(question):
            return []
        return await self._on_shelf(lambda shelf: diseases_asked_for(shelf, question, limit=limit))

    async def version(self) -> str:
        return await self._on_shelf(lambda shelf: shelf.version)

    async def sources(self) -> list[Source]:
        return await self._on_shelf(lambda shelf: shelf.sources())

    async def add(self, passages: Sequence[Passage], *, replace: bool) -> str:
        return await self._change(
            lambda shelf: (shelf.replace if replace else shelf.add)(passages), len(passages)
        )

    async def remove(self, ids: Sequence[str], *, source: str | None) -> str:
        return await self._change(lambda shelf: shelf.remove(ids, source=source), len(ids))

    async def _change(self, change: Callable[[Shelf], str], count: int) -> str:
        """Change the shelf beside the searches, one change after the other.

        Raises:
            PassagesRefused: with each passage's problem.
            ReferencesError: without the file's folder in its text.
        """
        try:
            version = await asyncio.get_running_loop().run_in_executor(
                self._changes, lambda: change(self._opened())
            )
        except PassagesRefused:
            raise
        except ReferencesError as error:
            raise ReferencesError(self._public(error)) from None
        logger.info("references: a change of %d passages: version %s", count, version)
        return version

    async def state(self, *, is_used: bool) -> dict[str, Any]:
        """Return version, number of passages and problem for /readyz; as they were last known if a
        look at them takes longer than LOOK_S. A shelf that is not used is not opened for it."""
        if is_used or self._shelf is not None:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
            await asyncio.wait({self._looking}, timeout=LOOK_S)
        version, passages = self._known or (None, None)
        return {"version": version, "passages": passages, "problem": self._problem}

    async def _look(self) -> None:
        try:
            self._known = await self._on_shelf(lambda shelf: (shelf.version, shelf.num_passages))
        except ReferencesError:  # which is noted
            self._known = None

    def observe_unsupported(self, share: float) -> None:
        self._unsupported.observe(share)

    async def _on_shelf(self, ask: Callable[[Shelf], T]) -> T:
        """Run `ask` on a thread.

        Raises:
            ReferencesError: there is no shelf that can be read; without the file's folder in its
                text, which anybody may read.
        """
        # While it hangs no answer waits as long as the first ones did.
        timeout_s = min(TIMEOUT_S, LOOK_S) if self._hangs else TIMEOUT_S
        asked = self._threads.submit(lambda: ask(self._opened()))
        self._asked[asked] = time.monotonic()
        asked.add_done_callback(self._asked.pop)
        try:
            async with asyncio.timeout(timeout_s):
                result = await asyncio.wrap_future(asked)
        except ReferencesError as error:
            self._note(self._explained(error), str(error))
        except TimeoutError:
            self._note(f"the shelf did not answer within {TIMEOUT_S:g} s")
        except Exception as error:  # the answer goes on without passages
            self._note(f"the shelf could not be searched: {type(error).__name__}")
        else:
            self._problem = None
            return result
        raise ReferencesError(self._problem or "")

    @property
    def _hangs(self) -> bool:
        """Whether every thread has been held for TIMEOUT_S."""
        before = time.monotonic() - TIMEOUT_S
        held = [asked.running() and since < before for asked, since in [*self._asked.items()]]
        return sum(held) >= _NUM_THREADS

    def _opened(self) -> Shelf:
        if self._shelf is None:
            self._shelf = self._open(self._place)
        return self._shelf

    def _public(self, error: ReferencesError) -> str:
        """Return the error without the place of the shelf, which /readyz shows to anybody."""
        if error.public is not None:
            return error.public
        if isinstance(self._place, str):
            shown = self._shelf.place if self._shelf else self._place
            return str(error).replace(shown, "args.references.url")
        return str(error).replace(str(self._place), self._place.name)

    def _explained(self, error: ReferencesError) -> str:
        if isinstance(self._place, str) or self._place.is_file():
            return self._public(error)
        if self._is_default:
            return "there is no shelf: python -m references build"
        return "there is no shelf at args.references.path: python -m references --shelf PATH build"

    def _note(self, problem: str, logged: str = "") -> None:
        if problem != self._problem:
            logger.warning("references: %s", logged or problem)
        self._problem = problem
