"""Misspelt words, mixed languages, bare names, weak further passages: what a search does then."""

from dataclasses import replace
from pathlib import Path

import pytest

from references.query import read_query
from references.shelf import Shelf, build
from references.words import function_words, languages
from tests.references.passages import ALL, ECZEMA, HAIR, STONES

FIBROSIS = replace(STONES, id="D:9", title="Cystic fibrosis", synonyms=(), kind="disease")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return build(tmp_path_factory.mktemp("shelf") / "s.db", [*ALL, FIBROSIS])


@pytest.mark.parametrize(
    ("question", "id_"),
    [
        ("What is nephrolitiasis?", STONES.id),  # a letter is missing
        ("What is nephrolithaisis?", STONES.id),  # two are swapped
        ("what is exzema", ECZEMA.id),
        ("kidnei stones", STONES.id),
        ("cistyc fibrossis", FIBROSIS.id),
        ("mucovisidose", FIBROSIS.id),  # French, by the glossary
        ("mucoviscidose", FIBROSIS.id),  # nothing tells that it is French
        ("Explique-moi what is eczema s'il te plaît", ECZEMA.id),
        ("nephrolitiase", STONES.id),
    ],
)
def test_a_question_finds_its_passage(shelf: Shelf, question: str, id_: str) -> None:
    assert [hit.passage.id for hit in shelf.search(question)][:1] == [id_]


@pytest.mark.parametrize("question", ["What is florbing?", "metformin", "Zorblax", "eczar"])
def test_another_word_is_no_misspelling(shelf: Shelf, question: str) -> None:
    assert shelf.search(question) == []


def test_a_word_that_is_there_stays(shelf: Shelf) -> None:
    with shelf._reading() as reader:
        query = read_query("shafts lesions", "en", reader)
    assert query.english == "shafts lesions"


def test_a_short_french_stem_is_no_english_word(tmp_path: Path) -> None:
    allergy = replace(STONES, id="T:8", title="Alpha-gal allergy", synonyms=())
    shelf = build(tmp_path / "s.db", [*ALL, allergy])
    assert shelf.search("la gale", language="fr") == []


def test_an_identifier_finds_its_passage(shelf: Shelf) -> None:
    with_id = replace(HAIR, id="HP:0000042", title="Something else")
    shelf.replace([with_id])
    try:
        assert [hit.passage for hit in shelf.search("What is hp:0000042?")] == [with_id]
        assert shelf.search("What is HP:0000043?") == []
    finally:
        shelf.remove([with_id.id])


def test_what_hardly_fits_is_not_cited_beside_what_does(shelf: Shelf) -> None:
    question = "What is eczematoid dermatitis, kidney?"
    every = shelf.hits(question, limit=5)
    cited = shelf.search(question, limit=5)
    best = max(hit.support for hit in every)
    assert 0 < len(cited) < len(every)
    assert all(hit.support >= max(0.35, best / 2) for hit in cited)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("What is it?", ("en",)),
        ("Qu'est-ce que la goutte ?", ("fr",)),
        ("mucoviscidose", ("en", "fr")),
        ("drépanocytose", ("fr",)),
        ("", ("en", "fr")),
    ],
)
def test_languages(text: str, spoken: tuple[str, ...]) -> None:
    assert languages(text) == spoken


def test_function_words_of_both_languages_where_both_are_spoken() -> None:
    assert {"what", "avec"} <= function_words("Explique-moi what is it s'il te plaît", "en")
    assert "avec" not in function_words("What is it?", "en")
