"""The default shelf is built once, made anew when its sources change, and keeps what was added."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from references.default_shelf import default_path, ensure_shelf
from references.embedding import WordVectors, content
from references.passage import ReferencesError
from references.shelf import Shelf
from tests.references.passages import HAIR, hpo_folder
from tests.references.test_shelf import Letters


def made(folder: Path) -> Shelf:
    return ensure_shelf(
        folder / "shelf.db", folder=folder / "hpo", progress=False, vectorise=Letters()
    )


def test_it_is_built_once(tmp_path: Path) -> None:
    hpo_folder(tmp_path / "hpo")
    first = made(tmp_path).path.stat().st_mtime_ns
    assert made(tmp_path).path.stat().st_mtime_ns == first
    assert made(tmp_path).num_passages == 8


def test_new_files_make_it_anew_and_added_passages_stay(tmp_path: Path) -> None:
    hpo = hpo_folder(tmp_path / "hpo")
    made(tmp_path).add([HAIR])
    text = (hpo / "hp.obo").read_text().replace("Hair that breaks.", "Hair that snaps.")
    (hpo / "hp.obo").write_text(text)
    shelf = made(tmp_path)
    assert shelf.get(["HP:0000002"])["HP:0000002"].text.startswith("Hair that snaps.")
    assert shelf.get([HAIR.id]) == {HAIR.id: HAIR}
    assert shelf.num_passages == 9


def test_passages_added_to_a_shelf_of_an_older_format_stay(tmp_path: Path) -> None:
    hpo_folder(tmp_path / "hpo")
    shelf = made(tmp_path)
    shelf.add([HAIR])
    with closing(sqlite3.connect(shelf.path)) as db:
        for column in ("wordings_en", "wordings_fr"):
            db.execute(f"alter table passages drop column {column}")
        db.execute("update meta set value = '1' where key = 'format'")
        db.commit()
    with pytest.raises(ReferencesError, match="has format 1"):
        shelf.search("hair")
    again = made(tmp_path)
    assert again.get([HAIR.id]) == {HAIR.id: HAIR}
    assert again.num_passages == 9
    assert not (tmp_path / "shelf.db.unreadable").exists()


def test_a_damaged_shelf_is_made_anew(tmp_path: Path) -> None:
    hpo_folder(tmp_path / "hpo")
    (tmp_path / "shelf.db").write_bytes(b"no database" * 500)
    assert made(tmp_path).num_passages == 8
    assert (tmp_path / "shelf.db.unreadable").exists()  # it may hold what somebody added


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="hp.obo: it cannot be read"):
        made(tmp_path)


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYCLINIC_CACHE_DIR", str(tmp_path))
    assert default_path() == tmp_path / "references" / "shelf.db"
    monkeypatch.delenv("POLYCLINIC_CACHE_DIR")
    assert default_path().name == "shelf.db"


def test_word_vectors_tell_what_is_near() -> None:
    vectors = WordVectors()(["kidney stones", "renal calculi", "sad mood", "", "of the"])
    assert vectors.shape == (5, 64)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert not vectors[3:].any()
    assert content("What is the kidney?") == "kidney"


def test_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="is not the package wordllama"):
        WordVectors(tmp_path)


@pytest.mark.slow
def test_the_real_shelf(tmp_path: Path) -> None:
    """The whole ontology: the questions that the project's first page shows."""
    import time

    start = time.process_time()
    shelf = ensure_shelf(tmp_path / "shelf.db", progress=False)
    assert time.process_time() - start < 60
    assert shelf.path.stat().st_size < 100e6
    assert shelf.num_passages > 29_000
    wanted = {
        "What is eczema?": "Eczematoid dermatitis",
        "eczema": "Eczematoid dermatitis",
        "Qu'est-ce que le psoriasis ?": "Psoriasiform dermatitis",
        "What does monilethrix look like?": "Monilethrix",
        "What are the signs of Marfan syndrome?": "Marfan syndrome",
        "signs of Marfan syndrome": "Marfan syndrome",
        "Quels sont les signes du syndrome de Marfan ?": "Marfan syndrome",
        "heart attack": "Myocardial infarction",
        "What is hemoptysis?": "Hemoptysis",
        "My child has a fever and a stiff neck": "Nuchal rigidity",
    }
    found = {question: shelf.search(question) for question in wanted}
    assert {q: hits[0].passage.title for q, hits in found.items()} == wanted
    titles = [h.passage.title for h in shelf.search("Which disease has fragile beaded hair?")]
    assert "Monilethrix" in titles
    for nothing in ("What is the dose of a drug that does not exist?", "Who won the World Cup?"):
        assert shelf.search(nothing) == []
    eczema = found["eczema"][0].passage
    assert "PMID:32412211" in eczema.identifiers
    assert eczema.text.startswith("Eczema is a form of dermatitis that is characterized by scaly")
    signs = ["brittle hair", "keratosis pilaris", "nail dysplasia", "perifollicular hyperkeratosis"]
    assert "OMIM:158000" in [match.disease for match in shelf.diagnose(signs)]
    again = replace(HAIR, id="T:9", title="Zorblaxitis", synonyms=())
    shelf.add([again])
    assert shelf.search("zorblaxitis")[0].passage == again
    assert shelf.verify() == []
