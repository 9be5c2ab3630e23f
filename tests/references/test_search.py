"""What a question finds on a small shelf: names first, other words, French, or nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from references import version
from references.cognates import skeleton
from references.query import read_query
from references.reader import Reader
from references.shelf import Shelf, build
from references.words import guess_language, name_key, sentences
from tests.references.passages import ALL, ECZEMA, HAIR, MARFAN, STONES
from tests.references.test_shelf import Letters


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return build(tmp_path_factory.mktemp("shelf") / "shelf.db", ALL)


def first(shelf: Shelf, question: str, **options: str) -> str | None:
    hits = shelf.search(question, **options)  # type: ignore[arg-type]
    return hits[0].passage.id if hits else None


@pytest.mark.parametrize(
    ("question", "id_"),
    [
        ("What is eczema?", "T:2"),
        ("eczema", "T:2"),
        ("ECZEMA!!!", "T:2"),
        ("What does monilethrix look like?", "T:1"),
        ("signs of Marfan syndrome", "D:1"),
        ("Marfan's syndrome symptoms", "D:1"),
        ("What are the symptoms of neonatal Marfan syndrome?", "D:2"),
        ("kidney stones", "T:3"),
        ("stone in the kidneys", "T:3"),
        ("hair that is beaded and breaks", "T:1"),
        ("Qu'est-ce que l'eczéma ?", "T:2"),
        ("Quels sont les signes du syndrome de Marfan ?", "D:1"),
        ("des calculs dans les reins", "T:3"),
    ],
)
def test_a_question_finds_its_passage(shelf: Shelf, question: str, id_: str) -> None:
    assert first(shelf, question) == id_


@pytest.mark.parametrize(
    "question",
    [
        *("", "?", "the of and", "What is it?", "Who won the world cup?", "bake a cake"),
        *("Qui a gagné la coupe du monde ?", '"', "a OR b", "title:x", "*", "NEAR(", "🙂", "12"),
        "'; drop table passages; --",
    ],
)
def test_nothing_is_found_on_other_topics(shelf: Shelf, question: str) -> None:
    assert shelf.search(question) == []


def test_a_long_question_is_searched_by_its_first_words(shelf: Shelf) -> None:
    assert shelf.search("kidney stones " + "word " * 50_000) is not None


def test_the_specialty_is_a_boost_not_a_wall(tmp_path: Path) -> None:
    twins = [replace(HAIR, id="a", specialty="cardiology"), replace(HAIR, id="b")]
    shelf = build(tmp_path / "s.db", twins)
    assert first(shelf, "monilethrix", specialty="dermatology") == "b"
    assert first(shelf, "monilethrix", specialty="cardiology") == "a"
    assert len(shelf.search("monilethrix", specialty="psychiatry")) == 2


def test_of_two_that_fit_alike_the_prominent_one_comes_first(tmp_path: Path) -> None:
    pair = [replace(ECZEMA, id="a"), replace(ECZEMA, id="b", prominence=0.9)]
    assert first(build(tmp_path / "s.db", pair), "What is eczema?") == "b"


def test_a_question_for_signs_gets_the_disease_and_another_the_term(tmp_path: Path) -> None:
    both = [replace(HAIR, title="Marfan syndrome", synonyms=()), MARFAN]
    shelf = build(tmp_path / "s.db", both)
    assert first(shelf, "signs of Marfan syndrome") == "D:1"
    assert first(shelf, "What is Marfan syndrome?") == "T:1"


def test_a_disease_that_two_registers_list_is_found_once(tmp_path: Path) -> None:
    shelf = build(tmp_path / "s.db", [MARFAN, replace(MARFAN, id="D:9")])
    assert [hit.passage.id for hit in shelf.search("Marfan syndrome")] == ["D:1"]


def test_sections_of_one_title_are_all_found(tmp_path: Path) -> None:
    shelf = build(tmp_path / "s.db", [HAIR, replace(HAIR, id="T:1b", text="Another section.")])
    assert len(shelf.search("monilethrix")) == 2


@pytest.mark.parametrize("vectorise", [None, Letters()])
def test_french_passages_are_found_by_french_questions(
    tmp_path: Path, vectorise: Letters | None
) -> None:
    texte = "Les lithiases urinaires provoquent des douleurs aiguës."
    french = replace(HAIR, id="f", title="Colique néphrétique", synonyms=(), text=texte)
    passages = [replace(french, language="fr"), *ALL]
    shelf = build(tmp_path / "s.db", passages, vectorise=vectorise)
    assert first(shelf, "Qu'est-ce qu'une colique néphrétique ?") == "f"


def test_the_limit_holds(shelf: Shelf) -> None:
    assert len(shelf.search("Marfan syndrome", limit=1)) == 1
    assert len(shelf.search("Marfan syndrome", limit=5)) == 2


def test_markup_in_a_passage_stays_data(tmp_path: Path) -> None:
    text = "<script>alert(1)</script> Ignore the above. beaded"
    shelf = build(tmp_path / "s.db", [replace(HAIR, text=text)])
    assert shelf.search("monilethrix")[0].passage.text == text


def test_a_phrase_of_the_glossary_means_more_than_its_words(shelf: Shelf) -> None:
    reader = Reader(shelf.path)
    query = read_query("J'ai souvent mal à la tête", "fr", reader)
    assert "headache" in query.english
    assert "pain" not in query.english.split()[:1]


@pytest.mark.parametrize(
    ("french", "english"),
    [
        ("hémoptysie", "hemoptysis"),
        ("leucémie", "leukemia"),
        ("arthrite", "arthritis"),
        ("psoriasis", "psoriasis"),
        ("cardiaque", "cardiac"),
        ("œdème", "edema"),
        ("tumeur", "tumor"),
        ("musculaire", "muscular"),
        ("rythme", "rhythm"),
        ("kyste", "cyst"),
        ("conjonctivite", "conjunctivitis"),
        ("cutané", "cutaneous"),
    ],
)
def test_cognates_share_a_skeleton(french: str, english: str) -> None:
    assert skeleton(french) == skeleton(english) != ""


def test_other_words_do_not_share_a_skeleton() -> None:
    words = "arthritis arthrosis hepatitis nephritis anemia leukemia cataract".split()
    assert len({skeleton(word) for word in words}) == len(words)
    assert skeleton("os") == ""


def test_a_name_in_another_order_has_the_same_key() -> None:
    assert name_key("Cardiomyopathy, dilated, 1A") == name_key("Dilated cardiomyopathy 1A")
    assert name_key("Neurofibromatosis, type II") == name_key("neurofibromatosis 2")
    assert name_key("Marfan syndrome") != name_key("Neonatal Marfan syndrome")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is eczema?", "en"),
        ("Qu'est-ce que le psoriasis ?", "fr"),
        ("eczéma", "fr"),
        ("psoriasis", "en"),
        ("j'ai mal au dos", "fr"),
    ],
)
def test_the_language_of_a_question(text: str, language: str) -> None:
    assert guess_language(text) == language


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See Dr. Smith. He knows.", ["See Dr. Smith.", "He knows."]),
        ("About 3.5 mg. Then stop.", ["About 3.5 mg.", "Then stop."]),
        ("Cited [1]. Also this. [2] Next one.", ["Cited [1].", "Also this. [2]", "Next one."]),
        ("- a\n- b\n", ["- a", "- b"]),
        ("C'est fini. « Oui » dit-il.", ["C'est fini.", "« Oui » dit-il."]),
        ("e.g. this one. That.", ["e.g. this one.", "That."]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == parts


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("My hair looks like a string of pearls", "en"),
        ("hair like pearls on a string", "en"),
        ("Mes cheveux ressemblent à un collier de perles", "fr"),
        ("des cheveux en collier de perles", "fr"),
    ],
)
def test_a_passage_is_found_by_how_people_say_it(
    question: str, language: str, tmp_path: Path
) -> None:
    said = replace(
        HAIR,
        wordings_en=("hair like a string of pearls",),
        wordings_fr=("cheveux en collier de perles",),
    )
    plain = build(tmp_path / "plain.db", ALL)
    assert "T:1" not in [h.passage.id for h in plain.search(question, language=language)]
    shelf = build(tmp_path / "shelf.db", [said, *ALL[1:]])
    (hit, *_) = shelf.search(question, language=language)
    assert hit.passage == said
    shelf.replace([HAIR])
    assert "T:1" not in [h.passage.id for h in shelf.search(question, language=language)]
    assert shelf.verify() == []


def test_an_english_question_meets_no_french_wording(tmp_path: Path) -> None:
    bones = replace(STONES, wordings_fr=("os fragiles", "fragile"))
    shelf = build(tmp_path / "shelf.db", [HAIR, bones, MARFAN])
    assert shelf.search("fragile", language="en") == []
    assert [h.passage.id for h in shelf.search("fragile", language="fr")] == [bones.id]


def test_a_search_finds_the_same_with_a_full_cache(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ("What is eczema?", "kidney stones", "signs of Marfan syndrome")
    expected = [shelf.hits(question) for question in questions]
    monkeypatch.setattr(version, "MAX_KEPT", 1)
    assert [shelf.hits(question) for question in questions] == expected


def test_of_a_word_that_very_many_have_only_so_many_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [replace(HAIR, id=f"M:{n}", title=f"Gout {n}", synonyms=()) for n in range(30)]
    shelf = build(tmp_path / "shelf.db", many)
    with shelf._reading() as reader:
        assert len(reader.matches(["gout"], 40)) == 30
        assert len(reader.matches(["gout"], 7)) == 7
        monkeypatch.setattr("references.reader.MAX_SCORED", 5)
        found = reader.matches(["gout"], 40)
    assert [number for number, _ in sorted(found)] == [1, 2, 3, 4, 5]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert first(shelf, "What is gout 3?") == "M:3", "a name is found wherever it stands"
    assert first(shelf, "What is gout 23?") == "M:23"
