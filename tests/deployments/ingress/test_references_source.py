"""The shelf of a router replica: opened late, followed, and a failure that answers survive."""

import asyncio
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.ingress import references_source
from deployments.ingress.references_source import ReferencesSource
from references.default_shelf import CACHE_VARIABLE, open_shelf
from references.passage import Passage, PassagesRefused, ReferencesError
from references.shelf import Shelf
from tests.references.passages import ALL, ECZEMA, HAIR, STONES

NOTHING = {"version": None, "passages": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "own.db"


@pytest.fixture(autouse=True)
def waits_for_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than /readyz waits."""
    monkeypatch.setattr(references_source, "LOOK_S", 20.0)


async def found(source: ReferencesSource, question: str) -> list[str]:
    hits = await source.search(question, language=None, limit=3)
    return [hit.passage.id for hit in hits]


async def test_a_shelf_that_appears_changes_and_breaks(path: Path) -> None:
    source = ReferencesSource(path)
    with pytest.raises(ReferencesError, match=r"there is no shelf at args\.references\.path"):
        await found(source, "What is eczema?")
    state = await source.state(is_used=True)
    assert "python -m references" in state.pop("problem")
    assert state == NOTHING
    shelf = open_shelf(path)
    version = shelf.add([ECZEMA, HAIR])
    assert (await found(source, "What is eczema?"))[0] == "T:2"
    assert await found(source, "football results of last week") == []
    assert await source.state(is_used=True) == {
        "version": version,
        "passages": 2,
        "problem": None,
    }
    version = shelf.add([STONES])
    assert (await found(source, "kidney stones"))[0] == "T:3"
    assert await source.version() == version
    path.write_bytes(b"broken" * 1000)
    with pytest.raises(ReferencesError) as failed:
        await found(source, "kidney stones")
    assert str(path.parent) not in str(failed.value)
    assert "damaged" in (await source.state(is_used=True))["problem"]
    path.unlink()
    open_shelf(path).add(ALL)
    assert (await found(source, "kidney stones"))[0] == "T:3"
    assert (await source.state(is_used=True))["problem"] is None


async def test_what_to_do_without_the_default_shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    problem = (await ReferencesSource().state(is_used=True))["problem"]
    assert problem == "there is no shelf: python -m references build"


async def test_it_is_not_opened_before_it_is_used(path: Path) -> None:
    def never(place: Path | str) -> Shelf:
        raise AssertionError("opened")

    source = ReferencesSource(path, never)
    assert await source.state(is_used=False) == {**NOTHING, "problem": None}


async def test_a_bug_of_the_search_is_a_problem_and_not_its_text(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def search(self, *args: Any, **more: Any) -> Any:
            raise KeyError("zebrafish")

    source = ReferencesSource(path, lambda path: Broken())  # type: ignore[arg-type, return-value]
    for _ in range(2):
        with pytest.raises(ReferencesError, match="could not be searched: KeyError"):
            await found(source, "zebrafish")
    assert "zebrafish" not in caplog.text
    assert len(caplog.records) == 1, "the same problem is logged once"


async def test_the_event_loop_goes_on(path: Path) -> None:
    begun, end = threading.Event(), threading.Event()

    class Slow:
        def search(self, *args: Any, **more: Any) -> Any:
            begun.set()
            assert end.wait(10)
            return []

    source = ReferencesSource(path, lambda path: Slow())  # type: ignore[arg-type, return-value]
    search = asyncio.create_task(found(source, "slow"))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    end.set()
    assert await search == []


class Hanging:
    """A shelf that answers when `end` is set."""

    def __init__(self, end: threading.Event) -> None:
        self._end = end

    def search(self, *args: Any, **more: Any) -> Any:
        self._end.wait(10)
        return []

    @property
    def version(self) -> str:
        self._end.wait(10)
        return "1"


async def test_a_shelf_that_hangs_holds_no_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references_source, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(references_source, "LOOK_S", 0.01)
    end = threading.Event()

    source = ReferencesSource(path, lambda path: Hanging(end))  # type: ignore[arg-type, return-value]
    state = {**NOTHING, "problem": None}
    assert await source.state(is_used=True) == state, "it does not wait, and knows nothing yet"
    searches = (found(source, "hangs") for _ in range(5))  # more than there are threads
    failed = await asyncio.gather(*searches, return_exceptions=True)
    assert {str(error) for error in failed} == {"the shelf did not answer within 0.05 s"}
    end.set()
    assert await found(source, "again") == []


@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
async def test_while_a_shelf_hangs_answers_do_not_wait_for_it_one_after_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(references_source, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(references_source, "LOOK_S", 0.01)
    end = threading.Event()

    source = ReferencesSource(path, lambda path: Hanging(end))  # type: ignore[arg-type, return-value]
    first = [asyncio.create_task(found(source, "hangs")) for _ in range(5)]
    await asyncio.sleep(0.1)
    if leaves:  # its client; the thread is held all the same
        for task in first:
            task.cancel()
    await asyncio.wait(first)
    await asyncio.sleep(0.3)
    started = time.monotonic()
    for _ in range(20):
        with pytest.raises(ReferencesError, match="did not answer"):
            await found(source, "hangs")
    assert time.monotonic() - started < 2  # a time limit of each would be 6 s
    end.set()
    while source._asked:
        await asyncio.sleep(0.01)
    assert await found(source, "again") == []


async def test_searches_at_the_same_time_during_changes(path: Path) -> None:
    """Every search sees one version as a whole."""
    shelf = open_shelf(path)
    shelf.add(ALL)
    source = ReferencesSource(path)
    changing = asyncio.create_task(asyncio.to_thread(_change_often, shelf))
    while not changing.done():
        many = await asyncio.gather(*(found(source, "What is eczema?") for _ in range(8)))
        assert all(ids[0] == "T:2" for ids in many)
    await changing


def _change_often(shelf: Shelf) -> None:
    for _ in range(10):
        shelf.remove([STONES.id])
        shelf.add([STONES])


def generation(number: int) -> list[Passage]:
    """Passages of one change, all with its number."""
    return [replace(p, text=f"{p.text} Generation {number}.") for p in (ECZEMA, HAIR, STONES)]


async def test_two_replicas_see_a_change_as_a_whole_under_load(path: Path) -> None:
    replicas = [ReferencesSource(path), ReferencesSource(path)]
    await replicas[0].add(generation(0), replace=False)
    done, seen = asyncio.Event(), list[set[str]]()

    async def ask(replica: ReferencesSource) -> None:
        while not done.is_set():
            hits = await replica.search("What is eczema?", language="en", limit=3)
            seen.append({hit.passage.text.rpartition("Generation")[2] for hit in hits})

    asking = [asyncio.create_task(ask(replica)) for replica in replicas for _ in range(3)]
    for number in range(1, 6):
        version = await replicas[number % 2].add(generation(number), replace=True)
        for replica in replicas:
            assert await replica.version() == version  # at once: a search looks at the file
    done.set()
    await asyncio.gather(*asking)
    assert len(seen) > 10
    assert all(len(numbers) == 1 for numbers in seen)  # never of two changes
    with pytest.raises(PassagesRefused, match="the id is on the shelf"):
        await replicas[0].add([ECZEMA], replace=False)
    await replicas[0].remove([HAIR.id], source=None)
    assert [source.passages for source in await replicas[1].sources()] == [1, 1]


async def test_a_server_is_not_named_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens on port 9; /readyz and replies say so without host, user and password."""
    pytest.importorskip("psycopg")
    source = ReferencesSource("postgresql://clinic:secret@127.0.0.1:9/passages")
    with pytest.raises(ReferencesError, match="the shelf's server could not be read") as failed:
        await found(source, "What is eczema?")
    problem = (await source.state(is_used=True))["problem"]
    for text in (str(failed.value), problem):
        assert not any(part in text for part in ("secret", "127.0.0.1", "clinic", "passages?"))
    with pytest.raises(ReferencesError, match="the shelf's server"):
        await source.add([ECZEMA], replace=True)


async def test_psycopg_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ReferencesError, match=r"pip install 'polyclinic\[postgres\]'"):
        await found(ReferencesSource("postgresql://db/passages"), "What is eczema?")
