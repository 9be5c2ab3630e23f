"""Add, replace, remove, verify; and that a change is one step, whatever happens in it."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from references.embedding import Floats
from references.passage import Passage, ReferencesError
from references.shelf import Shelf, build
from references.store import FileEngine, changed
from tests.references.passages import ALL, ECZEMA, HAIR, MARFAN, STONES

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return build(tmp_path / "shelf.db", ALL)


def names(shelf: Shelf, question: str) -> list[str]:
    return [hit.passage.title for hit in shelf.search(question)]


def test_passages_come_back_as_they_went_in(shelf: Shelf) -> None:
    assert tuple(shelf.passages()) == ALL
    assert shelf.get(["T:1", "nope"]) == {"T:1": HAIR}
    assert shelf.num_passages == len(ALL)
    assert shelf.verify() == []


def test_add_replace_and_remove(shelf: Shelf) -> None:
    asthma = replace(HAIR, id="T:9", title="Asthma", synonyms=(), text="Narrow airways, wheezing.")
    assert names(shelf, "asthma") == []
    first = shelf.version
    second = shelf.add([asthma])
    assert names(shelf, "asthma") == ["Asthma"]
    third = shelf.replace([replace(asthma, title="Bronchitis", text="A cough.")])
    assert names(shelf, "asthma") == []
    assert names(shelf, "bronchitis") == ["Bronchitis"]
    fourth = shelf.remove(["T:9"])
    assert names(shelf, "bronchitis") == []
    assert len({first, second, third, fourth}) == 4
    assert first.partition("-")[2] == fourth.partition("-")[2]  # the content is the same again
    assert shelf.verify() == []


def test_the_index_forgets_what_was_removed(shelf: Shelf) -> None:
    shelf.remove([p.id for p in ALL if p is not STONES])
    assert shelf.connection().execute("select count(*) from names").fetchone() == (2,)
    assert shelf.connection().execute("select count(*) from words('beaded')").fetchone() == (0,)
    counted = dict(shelf.connection().execute("select stem, count from stems"))
    assert counted["kidney"] == 1
    assert "bead" not in counted


def test_an_id_that_is_there_is_refused_and_nothing_changes(shelf: Shelf) -> None:
    before = shelf.version
    with pytest.raises(ReferencesError, match="passage T:2: the id is on the shelf: replace it"):
        shelf.add([replace(HAIR, id="new"), ECZEMA])
    assert shelf.version == before
    assert shelf.get(["new"]) == {}


def test_an_unknown_id_is_named(shelf: Shelf) -> None:
    with pytest.raises(ReferencesError, match="passage nope: there is none of this id"):
        shelf.remove(["T:1", "nope"])
    assert "T:1" in shelf.get(["T:1"])


def test_a_bad_passage_leaves_the_shelf(shelf: Shelf) -> None:
    before = shelf.path.read_bytes()
    with pytest.raises(ReferencesError, match="no licence"):
        shelf.add([replace(HAIR, id="x", licence="")])
    with pytest.raises(ReferencesError, match="no licence"):
        build(shelf.path, [replace(HAIR, licence="")])
    assert shelf.path.read_bytes() == before
    assert not list(shelf.path.parent.glob("*making*"))


def test_no_shelf_and_a_damaged_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="there is no shelf at .*build"):
        Shelf(tmp_path / "none.db").search("x")
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(ReferencesError, match="is not a shelf, or damaged"):
        Shelf(tmp_path / "text.db").search("x")


def test_verify_finds_a_changed_passage(shelf: Shelf) -> None:
    import sqlite3

    with sqlite3.connect(shelf.path) as db:
        db.execute("update passages set text = 'It is contagious.' where id = 'T:1'")
    assert shelf.verify() == ["passage T:1: its content and its checksum differ"]
    with sqlite3.connect(shelf.path) as db:
        db.execute("delete from passages where id = 'T:1'")
    assert "4 passages are there and 5 were recorded" in "; ".join(shelf.verify())


def test_another_format_is_refused(shelf: Shelf) -> None:
    import sqlite3

    with sqlite3.connect(shelf.path) as db:
        db.execute("update meta set value = '99' where key = 'format'")
    with pytest.raises(ReferencesError, match="has format 99"):
        Shelf(shelf.path).search("x")


def test_readers_follow_a_change_made_by_another_process(shelf: Shelf) -> None:
    assert names(shelf, "monilethrix") == ["Monilethrix"]
    code = f"from references.shelf import Shelf; from pathlib import Path; \
Shelf(Path({str(shelf.path)!r})).remove(['T:1'])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert names(shelf, "monilethrix") == []


def test_readers_see_the_shelf_before_or_after_a_change_never_between(shelf: Shelf) -> None:
    """Two versions, each with 20 passages of one generation, exchanged under four readers."""

    def generation(number: int) -> list[Passage]:
        text = f"generation {number}"
        return [replace(HAIR, id=f"g{n}", title=f"Topic {n}", text=text) for n in range(20)]

    build(shelf.path, generation(0))
    stop, seen, faults = threading.Event(), set[str](), list[str]()

    def read() -> None:
        while not stop.is_set():
            texts = {passage.text for passage in shelf.passages()}
            seen.update(texts)
            if len(texts) != 1 or shelf.num_passages != 20:
                faults.append(str(texts))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 9):
        shelf.replace(generation(number))
    time.sleep(0.05)
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert "generation 8" in seen


def test_two_builders_at_once_lose_nothing(shelf: Shelf) -> None:
    def add(name: str) -> None:
        for n in range(4):
            shelf.add([replace(HAIR, id=f"{name}{n}")])

    writers = [threading.Thread(target=add, args=(name,)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert shelf.num_passages == len(ALL) + 8
    assert shelf.verify() == []


def test_a_builder_that_dies_leaves_the_shelf_and_its_rest_is_cleared(shelf: Shelf) -> None:
    before = shelf.version
    code = f"""
import os
from pathlib import Path
from references.store import changed
with changed(Path({str(shelf.path)!r})) as writer:
    writer.remove("T:1")
    os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert shelf.version == before
    assert len(list(shelf.path.parent.glob("*making*"))) >= 1
    shelf.remove(["T:2"])
    assert not list(shelf.path.parent.glob("*making*"))


def test_a_full_disk_leaves_the_shelf(shelf: Shelf) -> None:
    """A limit on the size of files stands in for the disk: SQLite gets the same kind of error."""
    before = shelf.path.read_bytes()
    code = f"""
import resource, signal
from dataclasses import replace
from pathlib import Path
from references.passage import ReferencesError
from references.shelf import Shelf
from tests.references.passages import HAIR
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)} + 100_000,) * 2)
try:
    Shelf(Path({str(shelf.path)!r})).add(
        replace(HAIR, id=f"n{{n}}", text="word " * 3000) for n in range(100)
    )
except ReferencesError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout
    assert "the shelf before stays as it is" in done.stdout
    assert shelf.path.read_bytes() == before
    assert not list(shelf.path.parent.glob("*making*"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ReferencesError, match="could not be written"):
        build(tmp_path / "file" / "shelf.db", ALL)


def test_a_held_lock_is_named(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("references.store.LOCK_TIMEOUT_S", 0.1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with changed(shelf.path) as writer:
            held.set()
            done.wait(5)
            writer.remove("T:1")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    with pytest.raises(ReferencesError, match="another process has been changing"):
        shelf.remove(["T:2"])
    done.set()
    holder.join()
    assert "T:1" not in shelf.get(["T:1"])


def test_a_copied_shelf_is_the_same(shelf: Shelf, tmp_path: Path) -> None:
    shutil.copy(shelf.path, tmp_path / "copy.db")
    assert Shelf(tmp_path / "copy.db").version == shelf.version


class Letters:
    """A vectoriser for tests: counts of letters."""

    name = "letters"

    def __call__(self, texts: Sequence[str]) -> Floats:
        counts = [[text.lower().count(letter) for letter in "abcdefghij"] for text in texts]
        vectors = np.array(counts, np.float32).reshape(len(texts), 10)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def test_vectors_find_what_shares_no_word(tmp_path: Path) -> None:
    shelf = build(tmp_path / "v.db", ALL, vectorise=Letters())
    ranked = shelf.ranked("kdnei stnze", specialty=None, language="en", limit=1)
    assert ranked[0].passage.title == "Nephrolithiasis"
    assert ranked[0].near > 0.9
    plain = build(tmp_path / "w.db", ALL)
    assert plain.ranked("kdnei stnze", specialty=None, language="en", limit=1) == []


def test_vectors_of_another_kind_are_refused(tmp_path: Path) -> None:
    build(tmp_path / "v.db", ALL)
    with pytest.raises(ReferencesError, match="built with the vectors of 'nothing'"):
        Shelf(tmp_path / "v.db", vectorise=Letters()).search("x")


def test_a_change_keeps_the_vectors(tmp_path: Path) -> None:
    shelf = build(tmp_path / "v.db", ALL, vectorise=Letters())
    shelf.remove([MARFAN.id])
    shelf.add([replace(MARFAN, id="again")])
    rows = shelf.connection().execute("select count(*), sum(num_vectors) from vectors")
    assert rows.fetchone() == (len(ALL), 13)
    assert json.loads(json.dumps(shelf.verify())) == []


def test_a_plain_handle_does_not_take_the_vectors_away(tmp_path: Path) -> None:
    build(tmp_path / "v.db", ALL, vectorise=Letters())
    with pytest.raises(ReferencesError, match="open it with its vectoriser"):
        Shelf(tmp_path / "v.db").add([replace(MARFAN, id="again")])


def test_threads_share_the_vectors(tmp_path: Path) -> None:
    shelf = build(tmp_path / "v.db", ALL, vectorise=Letters())
    found: list[str] = []

    def ask() -> None:
        found.extend(hit.passage.id for hit in shelf.search("kidney stones", limit=1))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["T:3"] * 8
    shelf.remove(["T:1"])
    assert shelf.search("kidney stones", limit=1)[0].passage.id == "T:3"
    engine = shelf._engine
    assert isinstance(engine, FileEngine)
    assert list(engine._vectors) == [shelf.version]


def test_of_a_large_shelf_only_candidates_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("references.reader.MAX_COMPARED", 2)
    shelf = build(tmp_path / "v.db", ALL, vectorise=Letters())
    ranked = shelf.ranked("kidney stones", specialty=None, language="en", limit=3)
    assert [r.passage.title for r in ranked] == ["Nephrolithiasis"]
    assert ranked[0].near > 0.9
    assert shelf.ranked("zzz abc", specialty=None, language="en", limit=3) == []
    engine = shelf._engine
    assert isinstance(engine, FileEngine)
    assert engine._vectors == {}


def test_a_shelf_without_a_vector_is_searched_by_words(tmp_path: Path) -> None:
    french = replace(HAIR, language="fr", title="Colique")
    shelf = build(tmp_path / "v.db", [french], vectorise=Letters())
    assert shelf.search("colique", language="fr")[0].passage == french


def test_of_several_who_begin_a_shelf_at_once_all_are_on_it(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    threads = [threading.Thread(target=Shelf(path).add, args=([passage],)) for passage in ALL]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {p.id for p in Shelf(path).passages()} == {p.id for p in ALL}
    with pytest.raises(ReferencesError, match="there is no shelf"):
        Shelf(tmp_path / "none.db").remove(["T:1"])
