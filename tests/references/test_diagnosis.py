"""Diseases by their signs, in the ontology's and other words, on a tiny ontology."""

from pathlib import Path

import pytest

from references.default_shelf import ensure_shelf
from references.diagnosis import Signs, split_signs
from references.passage import ReferencesError
from references.shelf import Shelf, build
from references.signs_question import diseases_asked_for
from tests.references.passages import ALL, hpo_folder
from tests.references.test_shelf import Letters


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("hpo")
    hpo = hpo_folder(folder / "data")
    return ensure_shelf(folder / "shelf.db", folder=hpo, progress=False, vectorise=Letters())


def diseases(shelf: Shelf, *signs: str) -> list[str]:
    return [match.disease for match in shelf.diagnose(signs)]


def test_a_sign_by_its_name_or_synonym(shelf: Shelf) -> None:
    assert diseases(shelf, "Seizure") == ["OMIM:2"]
    assert diseases(shelf, "fragile hair")[0] == "OMIM:1"
    assert diseases(shelf, "Brittle hair", "Sparse hair")[0] == "OMIM:1"


def test_the_more_frequent_sign_counts_more(shelf: Shelf) -> None:
    assert diseases(shelf, "thin hair") == ["OMIM:3", "OMIM:1"]


def test_an_excluded_sign_does_not_count(shelf: Shelf) -> None:
    assert "OMIM:1" not in diseases(shelf, "Seizure")


def test_other_words_find_the_sign(shelf: Shelf) -> None:
    (match, *_) = shelf.diagnose(["my hair is breaking"])
    assert match.disease == "OMIM:1"
    assert match.signs == {"my hair is breaking": "Brittle hair"}


def test_french_words_find_the_sign(shelf: Shelf) -> None:
    assert diseases(shelf, "des cheveux fragiles")[0] == "OMIM:1"


def test_unknown_signs_find_nothing(shelf: Shelf) -> None:
    assert shelf.diagnose(["zzzz"]) == []
    assert shelf.diagnose([]) == []


def test_a_removed_disease_is_not_listed(tmp_path: Path) -> None:
    hpo = hpo_folder(tmp_path / "data")
    shelf = ensure_shelf(tmp_path / "s.db", folder=hpo, progress=False, vectorise=Letters())
    shelf.remove(["OMIM:3"])
    assert diseases(shelf, "thin hair") == ["OMIM:1"]


def test_a_shelf_without_signs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="the shelf has no signs of diseases"):
        build(tmp_path / "s.db", ALL).diagnose(["Seizure"])


@pytest.mark.parametrize(
    ("question", "signs"),
    [
        ("fever, stiff neck and a rash", ["fever", "stiff neck", "a rash"]),
        ("fever but no rash, cough", ["fever", "cough"]),
        ("fièvre et toux, sans éruption", ["fièvre", "toux"]),
        ("seizures; small head. floppy", ["seizures", "small head", "floppy"]),
        ("", []),
    ],
)
def test_signs_of_a_question(question: str, signs: list[str]) -> None:
    assert split_signs(question) == signs


def test_a_sign_is_explained_by_the_term_that_the_disease_has(shelf: Shelf) -> None:
    with shelf._reading() as reader:
        signs = Signs(reader.array)
    near = [("HP:0000004", 1.0), ("HP:0000002", 0.9)]  # a seizure, or brittle hair
    found = {match.disease: match.signs for match in signs.rank(["it"], lambda _: near, 9)}
    assert found["OMIM:1"] == {"it": "Brittle hair"}
    assert found["OMIM:2"] == {"it": "Seizure"}


def test_the_language_of_the_signs_is_the_questions(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "hypotonie" alone looks English, and would be low pressure of the eye."""
    spoken = []

    def ranked(*args: object, language: str | None, **more: object) -> list[object]:
        spoken.append(language)
        return []

    monkeypatch.setattr(shelf, "ranked", ranked)
    shelf.diagnose(["des convulsions", "hypotonie"])
    assert diseases_asked_for(shelf, "Quelle maladie donne ataxie et hypotonie ?", limit=3) == []
    assert diseases_asked_for(shelf, "Which disease has ataxie and hypotonie?", limit=3) == []
    assert spoken == ["fr", "fr", "fr", "fr", "en", "en"]
