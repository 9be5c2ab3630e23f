"""The shelf on PostgreSQL: the same answers as from a file, atomic changes, a server that goes."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from references.default_shelf import ensure_shelf
from references.embedding import Floats
from references.passage import Passage, ReferencesError
from references.shelf import Shelf, build
from references.store import engine_of
from tests.references.passages import ALL, ECZEMA, HAIR, MARFAN, STONES, hpo_folder
from tests.references.postgres_server import Server, running
from tests.references.test_shelf import Letters

pytestmark = pytest.mark.long
QUESTIONS = ("What is eczema?", "kidney stones", "signs of Marfan syndrome", "beaded hair")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    with running() as found:
        yield found


@pytest.fixture
def shelf(server: Server) -> Shelf:
    return build(server.url, ALL, vectorise=Letters())


def ids(shelf: Shelf, question: str) -> list[str]:
    return [hit.passage.id for hit in shelf.search(question, limit=3)]


def test_it_answers_as_a_file_does(shelf: Shelf, tmp_path: Path) -> None:
    file = build(tmp_path / "shelf.db", ALL, vectorise=Letters())
    for question in QUESTIONS:
        assert ids(shelf, question)[:1] == ids(file, question)[:1] != []
    assert shelf.version.partition("-")[2] == file.version.partition("-")[2]
    assert list(shelf.passages()) == list(file.passages()) == list(ALL)
    assert shelf.sources() == file.sources()
    assert ids(shelf, "football results") == []
    assert shelf.verify() == []


def test_a_change_is_made_as_a_whole_or_not_at_all(shelf: Shelf) -> None:
    before = shelf.version
    with pytest.raises(ReferencesError, match="T:2: the id is on the shelf"):
        shelf.add([replace(HAIR, id="new"), ECZEMA])
    with pytest.raises(ReferencesError, match="source 'nowhere': it has no passages"):
        shelf.remove(["T:1"], source="nowhere")
    assert (shelf.version, shelf.num_passages, shelf.get(["new"])) == (before, len(ALL), {})
    shelf.replace([replace(ECZEMA, text="A rash of beads.")])
    assert shelf.get(["T:2"])["T:2"].text == "A rash of beads."
    shelf.remove([HAIR.id])
    assert HAIR.id not in ids(shelf, "beaded hair")
    shelf.add([HAIR])
    shelf.remove(source=ECZEMA.source)
    assert ECZEMA not in shelf.passages()
    assert shelf.verify() == []


def test_a_second_handle_sees_a_change_and_never_half_of_it(shelf: Shelf, server: Server) -> None:
    generations = [
        [replace(p, text=f"{p.text} Generation {number}.") for p in (ECZEMA, HAIR, STONES)]
        for number in range(6)
    ]
    shelf.replace(generations[0])
    reader, stop, seen = Shelf(server.url, vectorise=Letters()), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            texts = [p.text for p in reader.passages() if p.id in ("T:1", "T:2", "T:3")]
            seen.append({text.rpartition("Generation")[2] for text in texts})
            reader.search("What is eczema?")

    thread = threading.Thread(target=read)
    thread.start()
    for generation in generations[1:]:
        shelf.replace(generation)
    stop.set()
    thread.join()
    assert all(len(numbers) == 1 for numbers in seen)
    assert reader.version == shelf.version


def test_two_builders_at_once_build_once(server: Server, tmp_path: Path) -> None:
    folder = hpo_folder(tmp_path / "hpo")
    code = (
        "import sys; from pathlib import Path; from references.default_shelf import ensure_shelf; "
        "from tests.references.test_shelf import Letters; s = ensure_shelf(sys.argv[1], "
        "folder=Path(sys.argv[2]), progress=False, vectorise=Letters()); print(s.version)"
    )
    Shelf(server.url, vectorise=Letters()).remove([p.id for p in ALL])
    command = [sys.executable, "-c", code, server.url, str(folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {one.communicate()[0].strip() for one in both}
    assert len(printed) == 1
    shelf = ensure_shelf(server.url, folder=folder, progress=False, vectorise=Letters())
    assert {shelf.version} == printed
    assert shelf.diagnose(["brittle hair"])


def test_a_server_that_goes_away_is_named_and_found_again(shelf: Shelf, server: Server) -> None:
    assert ids(shelf, "What is eczema?")
    server.stop()
    try:
        with pytest.raises(ReferencesError) as refused:
            shelf.search("What is eczema?")
        assert "127.0.0.1" in str(refused.value)
        assert "secret" not in str(refused.value)
        with pytest.raises(ReferencesError, match="could not be changed"):
            shelf.add([replace(MARFAN, id="new")])
    finally:
        server.start()
    assert ids(shelf, "What is eczema?")


def test_a_server_without_a_shelf(shelf: Shelf, server: Server) -> None:
    """What is read or taken off must be there; the first passages begin a shelf."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute("drop schema polyclinic_references cascade")
    assert not shelf.is_there
    for call in (lambda: shelf.search("eczema"), lambda: shelf.remove(["T:1"])):
        with pytest.raises(ReferencesError, match="there is no shelf at .*--shelf URL build"):
            call()
    shelf.add(ALL)
    assert ids(shelf, "What is eczema?")


def test_a_shelf_of_an_older_format_is_built_again_and_keeps_what_was_added(
    shelf: Shelf, server: Server, tmp_path: Path
) -> None:
    import psycopg

    shelf.replace(ALL)
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute("set search_path to polyclinic_references")
        db.execute("alter table passages drop column wordings_en, drop column wordings_fr")
        db.execute("update meta set value = '1' where key = 'format'")
    for call in (lambda: shelf.search("eczema"), lambda: shelf.remove(["T:1"])):
        with pytest.raises(ReferencesError, match="has format 1, .* build it again"):
            call()

    def passages() -> Iterator[Passage]:
        yield HAIR
        started = time.monotonic()
        with pytest.raises(ReferencesError, match="has format 1"):  # told, and does not wait
            shelf.search("eczema")
        with psycopg.connect(server.url, autocommit=True) as db:  # a router of the version before
            db.execute("set statement_timeout = 2000")
            assert db.execute("select title from polyclinic_references.passages").fetchall()
        assert time.monotonic() - started < 2
        yield replace(HAIR, title="")

    with pytest.raises(ReferencesError, match="title"):  # it fails, and all is as it was
        build(server.url, passages(), vectorise=Letters())
    folder = hpo_folder(tmp_path / "hpo")
    ensure_shelf(server.url, folder=folder, progress=False, vectorise=Letters())
    assert shelf.get([HAIR.id]) == {HAIR.id: HAIR}
    assert ids(shelf, "What is eczema?")
    assert shelf.verify() == []


class Pairs(Letters):
    """Vectors of another size."""

    name = "pairs"

    def __call__(self, texts: Sequence[str]) -> Floats:
        return super().__call__(texts)[:, :2]


@pytest.mark.parametrize("vectorise", [None, Pairs()])
def test_nobody_waits_while_tables_of_another_shape_are_filled(
    shelf: Shelf, server: Server, vectorise: Pairs | None
) -> None:
    """Of other vectors: what is there is read until it is done."""
    import psycopg

    read: list[float] = []

    def passages() -> Iterator[Passage]:
        yield HAIR
        for _ in range(12):  # more often than psycopg prepares a statement
            started = time.monotonic()
            assert ids(shelf, "What is eczema?")[0] == "T:2"
            read.append(time.monotonic() - started)
        with psycopg.connect(server.url, autocommit=True) as db:
            db.execute("set statement_timeout = 2000")
            db.execute("select number from polyclinic_references.passages")
        yield MARFAN

    made = build(server.url, passages(), vectorise=vectorise)
    assert max(read) < 2
    assert [p.id for p in made.passages()] == [HAIR.id, MARFAN.id]
    assert ids(made, "beaded hair")[0] == HAIR.id
    with pytest.raises(ReferencesError, match="built with the vectors"):
        shelf.search("eczema")
    with psycopg.connect(server.url) as db:
        schemas = db.execute("select nspname from pg_namespace where nspname like 'polyclinic%'")
        assert schemas.fetchall() == [("polyclinic_references",)]


def test_a_server_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("references.postgres.engine.CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # which accepts and says nothing
        shelf = Shelf(f"postgresql://clinic@127.0.0.1:{silent.getsockname()[1]}/x")
        with pytest.raises(ReferencesError, match="could not be read"):
            shelf.search("eczema")
        started = time.monotonic()
        with pytest.raises(ReferencesError, match="does not answer"):
            shelf.search("eczema")
        assert time.monotonic() - started < 1


def test_addresses_and_vectors_that_do_not_fit(shelf: Shelf, server: Server) -> None:
    with pytest.raises(ReferencesError, match="built with the vectors of 'letters'"):
        Shelf(server.url).add([replace(MARFAN, id="again")])
    wrong = server.url.replace("secret", "wrong")
    with pytest.raises(ReferencesError, match="authentication failed") as refused:
        Shelf(wrong).search("eczema")
    assert "wrong" not in str(refused.value)
    for address in ("mysql://host/db", "postgresql://host:port/db"):
        with pytest.raises(ReferencesError, match="is not one of PostgreSQL"):
            engine_of(address)
